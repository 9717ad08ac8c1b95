"""Jobs of real processes, by ``trainwright prove``: one model, in layouts and with faults that the plan chooses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from chaos.plan import Trained
from cluster.paths import CHECKOUT

SECONDS = 3600
SCRIPT = """
import time
import torch
from trainwright import Trainer, TrainerCallback, TrainingArguments

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.1)  # so that a fault finds its step

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Dropout(0.3),
            torch.nn.Linear(32, 4),
        )
    def forward(self, x, labels):
        return (torch.nn.functional.cross_entropy(self.layers(x), labels),)

class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 102  # no last batch of one sample, in any layout: batch norm takes none
    def __getitem__(self, index):
        return {"x": torch.linspace(-1, 1, 8) * (index % 7) + torch.randn(8), "labels": index % 4}

torch.manual_seed(0)
trainer = Trainer(Net(), TrainingArguments.from_job(), train_dataset=Noisy(), callbacks=[Slow()])
trainer.train()
trainer.save_model()
"""
ARGUMENTS = {
    "maxSteps": 100, "saveStrategy": "steps", "saveSteps": 7, "saveTotalLimit": 2, "loggingSteps": 1, "useCpu": True,
    "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 2, "learningRate": 0.01, "dataloaderNumWorkers": 1,
    "disableTqdm": True,
}  # fmt: skip


def proved(job: Trained, folder: Path) -> dict[str, Any]:
    """Train it with and without faults; the finding is that of ``proof.json``, with the last line that was printed."""
    output = folder / f"trained-{job.number}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    undisturbed = folder / f"undisturbed-{job.layout[0]}x{job.layout[1]}"
    if undisturbed.exists():
        shutil.copytree(undisturbed, output / "undisturbed")
    (output / "job.yaml").write_text(yaml.safe_dump(manifest(job.layout)))
    command = [sys.executable, "-m", "trainwright_operator.cli", "prove", str(output / "job.yaml")]
    path = os.pathsep.join([str(CHECKOUT / "trainer_image"), str(CHECKOUT / "operator")])
    with (output / "log").open("w") as log:
        done = subprocess.run(
            [*command, "--output", str(output), "--faults", str(job.faults), "--seed", str(job.seed)],
            env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=log, text=True, timeout=SECONDS,
        )  # fmt: skip
    (output / "table").write_text(done.stdout)
    if not (output / "proof.json").exists():
        return {"problems": [f"prove ended with {done.returncode}: {(output / 'log').read_text()[-500:]}"]}
    found: dict[str, Any] = json.loads((output / "proof.json").read_text())
    if not undisturbed.exists():
        shutil.copytree(output / "undisturbed", undisturbed)
    if done.returncode and not found["problems"]:
        found["problems"] = [f"prove ended with {done.returncode}"]
    return found


def manifest(layout: tuple[int, int]) -> dict[str, Any]:
    pods, ranks = layout
    return {
        "apiVersion": "trainwright.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "net"},
        "spec": {
            "script": {"inline": SCRIPT},
            "trainingArguments": ARGUMENTS,
            "accelerator": {"nodes": pods, "perNode": ranks},
            "output": {"emptyDir": {}},
        },
    }
