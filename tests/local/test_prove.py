"""A real job is trained, disturbed and compared: a short run of what ``make chaos`` does for hours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = """
import time
import torch
from trainwright import Trainer, TrainerCallback, TrainingArguments

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.1)  # so that a fault finds its step

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    def forward(self, x, labels):
        return (torch.nn.functional.mse_loss(self.layers(x).squeeze(-1), labels),)

torch.manual_seed(0)
data = [{"x": torch.randn(4), "labels": torch.tensor(float(i % 5))} for i in range(64)]
trainer = Trainer(Line(), TrainingArguments.from_job(), train_dataset=data, callbacks=[Slow()])
trainer.train()
trainer.save_model()
"""
ARGUMENTS = {"maxSteps": 30, "saveStrategy": "steps", "saveSteps": 4, "loggingSteps": 1, "useCpu": True}


def test_a_job_whose_processes_die_ends_with_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    manifest = {
        "apiVersion": "trainwright.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "line"},
        "spec": {
            "script": {"inline": SCRIPT},
            "trainingArguments": {**ARGUMENTS, "perDeviceTrainBatchSize": 4, "disableTqdm": True},
            "output": {"emptyDir": {}},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    command = [sys.executable, "-m", "trainwright_operator.cli", "prove", "job.yaml", "--faults", "2", "--seed", "172"]
    path = os.pathsep.join([str(ROOT / "trainer_image"), str(ROOT / "operator")])
    done = subprocess.run(
        [*command, "--kinds", "rank,hasty"], cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert "4 of 4 tensors identical" in done.stdout
    assert "processes      none left" in done.stdout
    assert done.stdout.splitlines()[-1] == "PROVED: 2 faults, and the end of an undisturbed run"
    found = json.loads((tmp_path / "runs" / "line-proof" / "proof.json").read_text())
    assert (found["seed"], len(found["strikes"]), found["problems"]) == (172, 2, [])
    assert all(strike["seconds"] > 0 for strike in found["strikes"])
    assert all(record["reason"] for record in found["attempts"][:-1])
