"""A small training that the tests interrupt: as a function in this process, or as a script under torchrun.

It has whatever an exact resume must put back: dropout, noise in the data, momentum, a schedule, a scaler.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from trainwright.arguments import TrainingArguments
from trainwright.callbacks.state import TrainerControl
from trainwright.trainer.trainer import Trainer

SAMPLES = 22
WRITING = ("fsync", "rename", "replace", "unlink", "rmdir", "open")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.dropout, self.outer = nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.outer(self.dropout(torch.relu(self.norm(self.inner(x)))))
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


class Augmented(Dataset[Any]):
    """Every sample is changed by numbers from all three generators."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return augmented(index)


class AugmentedStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return map(augmented, range(SAMPLES))


def augmented(index: int) -> dict[str, Any]:
    base = torch.linspace(-1, 1, 6) * (index % 7) + index % 3
    noise = torch.randn(6) * 0.1 + random.random() * 0.1 + float(np.random.rand()) * 0.1
    return {"x": base + noise, "input_ids": [0] * (1 + index * 5 % 11), "labels": index % 3}


class Interrupt:
    """A callback that kills its process when a step is done, as the kernel or a node's end would."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "x": torch.stack([sample["x"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def make_trainer(output: str, stream: bool = False, async_save: bool | None = None, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 9,
        "learning_rate": 0.05,
        "warmup_steps": 3,
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    args = TrainingArguments(output_dir=output, **{**defaults, **arguments})
    dataset = AugmentedStream() if stream else Augmented()
    trainer = Trainer(model_init=Net, args=args, data_collator=collate, train_dataset=dataset)
    trainer.async_save = async_save
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def main() -> None:
    """``resume_job.py '{"output": ..., "arguments": ..., "die_at": step, "rank": rank, "resume": bool}'``"""
    job = json.loads(sys.argv[1])
    trainer = make_trainer(job["output"], **job.get("arguments", {}))
    if "die_at" in job:
        trainer.add_callback(Interrupt(job["die_at"], job.get("rank", 0)))
    trainer.train(resume_from_checkpoint=job.get("resume", False))
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), os.path.join(job["output"], "final.pt"))


def train_and_die(output: str, job: dict[str, Any], at_call: int, counted: Any) -> None:
    """Train, and kill this process before the ``at_call``-th call that changes a file in ``output``."""
    torch.set_num_threads(1)
    numbers = itertools.count(1)
    for name in WRITING:
        setattr(os, name, deadly(getattr(os, name), at_call, counted, output, numbers))
    make_trainer(output, **job).train()


def deadly(call: Any, at_call: int, counted: Any, output: str, numbers: Any) -> Any:
    def counting(*args: Any, **kwargs: Any) -> Any:
        if isinstance(args[0], int) or output in str(args[0]):
            counted.value = number = next(numbers)  # without a lock, which would die locked; threads count, too
            if number == at_call:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return counting


if __name__ == "__main__":
    main()
