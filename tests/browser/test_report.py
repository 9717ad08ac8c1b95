"""The report in a real browser: light and dark, wide and narrow; contrast, names and keyboard, judged by axe.

`make browser` installs what it needs besides Chromium, and leaves the pictures in artefacts/report.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.paths import CHECKOUT
from trainwright_operator import cli

MODULES = CHECKOUT / ".browser" / "node_modules"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAWN_MS = 1000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian's package is chromium"),
    pytest.mark.skipif(not MODULES.is_dir(), reason="no axe-core here; make browser installs it"),
]

ATTEMPTS = """\
apiVersion: trainwright.dev/v1alpha1
kind: TrainingJob
metadata: {name: gpt-corpus, namespace: default}
spec:
  model: {source: gpt2}
  dataset: {source: /data/*.txt}
  trainingArguments: {maxSteps: 1000}
status:
  state: Succeeded
  display: {state: Succeeded}
  startTime: "2026-01-01T00:00:00Z"
  completionTime: "2026-01-01T01:20:00Z"
  attempts:
  - {attempt: 1, startTime: "2026-01-01T00:00:00Z", endTime: "2026-01-01T00:22:00Z", outcome: Failed, reason: Error,
     message: "rank 3 exited with 1: <b>an error</b>", step: 310}
  - {attempt: 2, startTime: "2026-01-01T00:31:00Z", endTime: "2026-01-01T01:20:00Z", outcome: Succeeded, step: 1000}
"""


def run(folder: Path, rate: float, rows: int = 1000) -> Path:
    """A run whose loss falls, with a gap of NaN, and an evaluation every 50 steps."""
    folder.mkdir(parents=True)
    log: list[dict[str, Any]] = []
    for step in range(1, rows + 1):
        loss = 1.6 + 3.6 * math.exp(-step * rate) + 0.1 * math.sin(step)
        row = {"step": step, "epoch": step / 250, "loss": None if 600 <= step < 620 else loss}
        log.append(row | {"grad_norm": 20.0 if step == 777 else 1 + math.sin(step) / 4, "learning_rate": rate})
        if step % 50 == 0:
            log.append({"step": step, "epoch": step / 250, "eval_loss": loss + 0.1, "eval_accuracy": 1 - loss / 6})
    state = {"global_step": rows, "max_steps": rows, "epoch": rows / 250, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "training_args.json").write_text(json.dumps({"learning_rate": rate, "seed": 1}))
    return folder


def looked_at(page: Path, name: str) -> list[dict[str, Any]]:
    pictures = CHECKOUT / "artefacts" / "report" / name
    pictures.mkdir(parents=True, exist_ok=True)
    command = ["node", str(CHECKOUT / "tests/browser/look.js"), str(CHROMIUM), str(page), str(pictures)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "NODE_PATH": str(MODULES)}
    )
    assert ended.returncode == 0, ended.stderr
    looks: list[dict[str, Any]] = json.loads(ended.stdout)
    for look in looks:
        print(
            f"\n{name} {look['scheme']} {look['width']}: drawn in {look['drawn']:.0f} ms, {len(look['passed'])} rules"
        )
    return looks


@pytest.mark.parametrize("kind", ["restarts", "compared", "long"])
def test_the_page_is_readable_by_everyone(kind: str, tmp_path: Path) -> None:
    runs = [run(tmp_path / "base", 0.005, rows=200_000 if kind == "long" else 1000)]
    if kind == "compared":
        runs += [run(tmp_path / "high-rate", 0.01), run(tmp_path / "low-rate", 0.002)]
    elif kind == "restarts":
        (runs[0] / "trainingjob.yaml").write_text(ATTEMPTS)
    page = tmp_path / "page.html"
    assert cli.main(["report", *map(str, runs), "--html", str(page)]) == 0
    assert page.stat().st_size < 3_000_000
    for look in looked_at(page, kind):
        assert look["violations"] == []
        assert {"color-contrast", "aria-input-field-name", "scrollable-region-focusable"} & {*look["passed"]}
        assert look["said"] == []
        assert look["requests"] == []
        assert look["overflow"] <= 0
        assert look["drawn"] < DRAWN_MS
        assert (look["background"] == "rgb(15, 18, 22)") is (look["scheme"] == "dark")
        keys = look["keyboard"]
        assert {"theme", "area"} <= {*keys["reached"]}
        assert len({keys["first"], keys["second"], keys["last"]}) == 3
        assert keys["last"].startswith("step 200000: " if kind == "long" else "step 1000: ")
        assert keys["tip"].startswith("step ")
        assert keys["toggles"]
