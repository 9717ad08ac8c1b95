"use strict";
(() => {
  const root = document.documentElement;
  const stored = (kind, name, value) => {
    try { return value === undefined ? window[kind].getItem(name) : window[kind].setItem(name, value); } catch { return null; }
  };
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  const chosen = stored("localStorage", "trainwright-theme");
  if (chosen) root.dataset.theme = chosen;
  theme.hidden = false;
  label();
  dark.addEventListener("change", label);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored("localStorage", "trainwright-theme", root.dataset.theme);
    label();
  });

  const pause = document.getElementById("pause");
  if (pause) {
    const set = (paused) => {
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Resume updates" : "Pause updates";
      stored("sessionStorage", "trainwright-paused", paused ? "1" : "");
    };
    set(Boolean(stored("sessionStorage", "trainwright-paused")));
    pause.hidden = false;
    pause.addEventListener("click", () => set(pause.getAttribute("aria-pressed") !== "true"));
    setInterval(() => { if (pause.getAttribute("aria-pressed") !== "true") location.reload(); }, 1000 * pause.dataset.seconds);
  }

  const shown = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(3).replace(/\.?0+e/, "e");
    return String(+value.toPrecision(5));
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle + 1; else high = middle; }
    return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
  };

  const page = JSON.parse(document.getElementById("data").textContent);
  const read = (area) => {
    const chart = page.charts[area.dataset.chart];
    const [cursor, tip] = area.querySelectorAll(".cursor, .tip");
    const xs = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    if (!xs.length) return;
    let at = xs.length - 1;
    const move = (index, visible) => {
      at = Math.max(0, Math.min(xs.length - 1, index));
      const x = xs[at], share = (x - page.low) / (page.high - page.low);
      const values = chart.lines.filter((line) => line.x.length).map((line) => [line.label, shown(line.y[nearest(line.x, x)])]);
      area.setAttribute("aria-valuenow", String(x));
      area.setAttribute("aria-valuetext", `${page.axis} ${shown(x)}: ${values.map((pair) => pair.join(" ")).join(", ")}`);
      if (!visible) return;
      cursor.style.display = tip.style.display = "block";
      cursor.style.left = `${100 * share}%`;
      tip.style.left = share < 0.5 ? `calc(${100 * share}% + 10px)` : "auto";
      tip.style.right = share < 0.5 ? "auto" : `calc(${100 * (1 - share)}% + 10px)`;
      tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: `${page.axis} ${shown(x)}` }), ...values.map((pair) => {
        const row = document.createElement("div");
        row.append(...pair.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
        return row;
      }));
    };
    const hide = () => { cursor.style.display = tip.style.display = "none"; };
    move(at, false);
    area.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect();
      move(nearest(xs, page.low + (page.high - page.low) * (event.clientX - box.left) / box.width), true);
    });
    area.addEventListener("pointerleave", hide);
    area.addEventListener("blur", hide);
    area.addEventListener("focus", () => { if (area.matches(":focus-visible")) move(at, true); });
    area.addEventListener("keydown", (event) => {
      const far = Math.max(1, Math.round(xs.length / 10));
      const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - far, PageUp: at + far,
        Home: 0, End: xs.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      move(to, true);
    });
  };
  document.querySelectorAll(".area").forEach(read);
})();
