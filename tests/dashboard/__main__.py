"""The dashboard and the alerts of the chart on a real Prometheus, beside the status of the jobs that it watched.

    cd tests && python -m dashboard

A control plane with simulated nodes, Kueue and two operators goes through two minutes of jobs. Then every query of the
dashboard is asked of Prometheus and compared with the status of the jobs, and the page is drawn into
artefacts/dashboard/. Ends with 1 if a panel is empty or wrong, or an alert fires.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

from cluster.control_plane import ControlPlane
from cluster.kueue import Kueue
from cluster.paths import CHECKOUT
from cluster.say import ClusterError, say
from dashboard import drawing, panels
from dashboard.prometheus import Prometheus, program
from dashboard.story import HOME, Story
from integration import charts

FOLDER = CHECKOUT / "artefacts" / "dashboard"
FORM = "{:<60}{:<24}{:>10}{:>12}  {}"
MONITORING = ("serviceMonitor", "prometheusRule", "grafanaDashboard")


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    objects = charts.render(HOME, *(word for name in MONITORING for word in ("--set", f"{name}.enabled=true")))
    cluster = ControlPlane(f"dashboard-{os.getpid()}", nodes=2)
    kueue = Kueue(cluster, {})
    try:
        program("prometheus")
        check_alerts(objects)
        with ExitStack() as stack:
            stack.callback(cluster.down)
            cluster.up()
            stack.callback(kueue.down)
            kueue.up()
            return watched(Story(cluster, Path(stack.enter_context(tempfile.TemporaryDirectory()))), objects)
    except ClusterError as error:
        print(f"dashboard: error: {error}", file=sys.stderr)
        return 1


def check_alerts(objects: list[dict]) -> None:
    """promtool on the rules, and on what makes each of them fire."""
    rules = FOLDER / "rules.yaml"
    rules.write_text(yaml.safe_dump(charts.only(objects, "PrometheusRule")["spec"]))
    tests = FOLDER / "alerts.yaml"
    tests.write_text((Path(__file__).parent / "alerts.yaml").read_text())
    for command in (["check", "rules", rules.name], ["test", "rules", tests.name]):
        done = subprocess.run([program("promtool"), *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        print((done.stdout + done.stderr).strip(), flush=True)
        if done.returncode:
            raise ClusterError(f"promtool {' '.join(command)} failed")


def watched(story: Story, objects: list[dict]) -> int:
    (service,) = [one for one in objects if one["kind"] == "Service" and one["metadata"]["name"].endswith("-metrics")]
    (endpoint,) = charts.only(objects, "ServiceMonitor")["spec"]["endpoints"]
    board = panels.panels_of(charts.only(objects, "ConfigMap")["data"]["trainwright.json"])
    rules = charts.only(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]
    try:
        story.prepare()
        replicas = {name: operator.http_port for name, operator in story.operators.items()}
        with Prometheus(story.folder, replicas, endpoint, service) as server:
            began = time.time()
            story.tell()
            time.sleep(4)  # the last pushes are written, and scraped
            rows, jobs = compare(board, server, story), story.jobs()
            fires = [rule["alert"] for rule in rules if server.query(rule["expr"], time.time())]
            (FOLDER / "page.html").write_text(drawing.page(board, server, began, time.time()))
    finally:
        story.close()
    (FOLDER / "jobs.yaml").write_text(yaml.safe_dump_all(jobs))
    return conclude(rows, fires)


def compare(board: list[panels.Panel], server: Prometheus, story: Story) -> list[panels.Row]:
    first_steps = [one.first_step_seconds for one in story.trainers.values() if one.first_step_seconds is not None]
    wanted = panels.expected(story.jobs(), story.endpoint.accepted, first_steps)
    assert set(wanted) == {panel.title for panel in board}, "a panel that nothing here knows, or one that is gone"
    now, rows = time.time(), []
    for panel in board:
        values, scale = wanted[panel.title]
        rows += panels.compared(panel, panels.values_of(panel, server, now), values, scale)
    return rows


def conclude(rows: list[panels.Row], fires: list[str]) -> int:
    print(FORM.format("PANEL", "SERIES", "PROMETHEUS", "STATUS", ""))
    for row in rows:
        found = "nothing" if row.found is None else f"{row.found:.4g}"
        wanted = row.wanted if isinstance(row.wanted, str) else f"{row.wanted:.4g}"
        print(FORM.format(row.panel, row.series, found, wanted, "" if row.right else "WRONG"))
    wrong = sum(not row.right for row in rows)
    print(f"alerts that fire: {', '.join(fires) or 'none'}")
    picture()
    print(f"{len(rows)} series of {len({row.panel for row in rows})} panels, {wrong} wrong")
    return int(bool(wrong or fires))


def picture() -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        say(f"no Chromium here, so no picture: {FOLDER / 'page.html'}")
        return
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1164,1584"]
    command += [f"--screenshot={FOLDER / 'page.png'}", (FOLDER / "page.html").as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    print(FOLDER / "page.png")


if __name__ == "__main__":
    sys.exit(main())
