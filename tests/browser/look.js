// Opens a page in headless Chromium, light and dark, wide and narrow: looks at it, asks axe, and uses the keyboard.
// Prints what it found as JSON. Usage: node look.js <chromium> <page> <folder for pictures>
const fs = require("fs");
const puppeteer = require("puppeteer-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

async function look(browser, file, folder, scheme, width) {
  const context = await browser.createBrowserContext(); // the page remembers its theme
  const page = await context.newPage();
  const said = [], requests = [];
  page.on("console", (message) => message.type() === "error" && said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("request", (request) => request.url().startsWith("file:") || requests.push(request.url()));
  await page.setBypassCSP(true); // for axe alone; the page's own policy allows its own script
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.setViewport({ width, height: 900, deviceScaleFactor: width < 600 ? 2 : 1 });
  await page.goto(`file://${file}`, { waitUntil: "load" });
  const drawn = await page.evaluate(() => new Promise((done) => {
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
  }));
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.screenshot({ path: `${folder}/${scheme}-${width}.png`, fullPage: true });
  await page.evaluate(`${axe};0`);
  const result = await page.evaluate((rules) => axe.run(document, { runOnly: rules }), RULES);
  const violations = result.violations.map((one) => `${one.id}: ${one.nodes[0].html}`);
  const passed = result.passes.map((one) => one.id);
  const keyboard = await useKeyboard(page);
  await context.close();
  return { scheme, width, said, requests, drawn, overflow, background, violations, passed, keyboard };
}

async function useKeyboard(page) {
  const reached = new Set();
  for (let press = 0; press < 60; press += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.className.split(" ")[0]));
  }
  const value = () => page.$eval(".area", (area) => area.getAttribute("aria-valuetext"));
  await page.focus(".area");
  await page.keyboard.press("Home");
  const first = await value();
  await page.keyboard.press("ArrowRight");
  const second = await value();
  await page.keyboard.press("End");
  const last = await value();
  const tip = await page.$eval(".tip", (one) => one.textContent);
  await page.focus("#theme");
  const before = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.keyboard.press("Enter");
  const after = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.keyboard.press("Enter");
  return { reached: [...reached], first, second, last, tip, toggles: before !== after };
}

(async () => {
  const [, , chromium, file, folder] = process.argv;
  const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
  const looks = [];
  for (const scheme of ["light", "dark"]) {
    for (const width of [1280, 400]) looks.push(await look(browser, file, folder, scheme, width));
  }
  await browser.close();
  console.log(JSON.stringify(looks));
})();
