"""The scripts that are shown to users end with the same losses, whichever library they import the Trainer from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "scripts"
sys.path.insert(0, str(FOLDER))

import same_losses  # noqa: E402


@pytest.mark.parametrize("script", same_losses.SCRIPTS)
def test_the_losses_are_those_of_transformers(script: str) -> None:
    count, ours, theirs, apart = same_losses.compare(script)
    assert count >= 14
    assert ours == pytest.approx(theirs, abs=same_losses.TOLERANCE)
    assert apart <= same_losses.TOLERANCE


def test_a_script_leaves_its_results(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "token_classification.py"), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "***** eval metrics *****" in done.stdout
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.6
    assert results["train_samples"] == 300
