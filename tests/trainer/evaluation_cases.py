"""Evaluations that the tests run in one process and on several ranks, to the same result."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.data_cases import Stream
from trainer.settings import settings
from trainwright.trainer.trainer import Trainer


class Nested(nn.Module):
    """Returns nested and ragged outputs: logits as long as the batch's longest sample, and a tuple of two more."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 3)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.embedding(input_ids)
        more = (logits.sum(1), {"longest": (input_ids >= 0).sum(1)})
        if labels is None:
            return {"logits": logits, "more": more}
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        return {"loss": loss, "logits": logits, "more": more}


def pad(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(sample["input_ids"]) for sample in samples)
    padded = {"input_ids": 0, "labels": -100}
    return {
        name: torch.tensor([sample[name] + [value] * (longest - len(sample[name])) for sample in samples])
        for name, value in padded.items()
    }


def sample(index: int) -> dict[str, Any]:
    length = 1 + index * 5 % 7
    return {"input_ids": [(index + k) % 20 for k in range(length)], "labels": [(index + k) % 3 for k in range(length)]}


class SampleStream(Stream):
    def __iter__(self) -> Any:
        return map(sample, range(self.length))


def accuracy(prediction: Any, compute_result: bool = True) -> dict[str, Any]:
    logits = prediction.predictions[0]
    right = np.asarray(logits.argmax(-1) == prediction.label_ids)
    extras = {}
    if prediction.losses is not None:
        extras["hardest"] = float(np.max(np.asarray(prediction.losses)))
    if prediction.inputs is not None and not isinstance(prediction.inputs, dict):
        extras["tokens"] = np.float32(prediction.inputs.sum())
    return {"right": np.int64(right.sum()), "rows": len(logits), **extras}


class RunningAccuracy:
    """A metric that adds up over the batches."""

    def __init__(self) -> None:
        self.right = self.rows = self.calls = 0

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, Any]:
        one = accuracy(prediction)
        self.right, self.rows, self.calls = self.right + one["right"], self.rows + one["rows"], self.calls + 1
        return {"right": self.right, "rows": self.rows, "calls": self.calls} if compute_result else {}


def make_trainer(length: int, stream: bool = False, metrics: Any = accuracy, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    args = settings(
        output_dir=tempfile.gettempdir(),
        per_device_eval_batch_size=2,
        disable_tqdm=True,
        label_names=["labels"],
        **arguments,
    )
    dataset: Any = SampleStream(length) if stream else [sample(index) for index in range(length)]
    return Trainer(Nested(), args, data_collator=pad, eval_dataset=dataset, compute_metrics=metrics)


def evaluate_cases(cases: list[dict[str, Any]]) -> list[Any]:
    """For each case the metrics, without speeds, and the predictions with their labels."""
    return [evaluate_case(**case) for case in cases]


def evaluate_case(running: bool = False, **case: Any) -> Any:
    trainer = make_trainer(**case, metrics=RunningAccuracy() if running else accuracy)
    metrics = {name: value for name, value in trainer.evaluate().items() if "second" not in name and "time" not in name}
    trainer.compute_metrics = None
    output = trainer.predict(trainer.eval_dataset)
    return metrics, output.predictions, output.label_ids
