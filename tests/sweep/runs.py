"""The runs of one architecture in this process, or in one of several ranks, and the figures that they give.

What the Trainer says is held against what the model itself says of the same samples: called here, without the Trainer.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from sweep.architectures import Architecture
from sweep.data import BY_TARGET, collate, samples
from trainwright import Trainer, TrainingArguments

GLOBAL, STEPS, JUDGED, JUDGED_AT_ONCE = 12, 2, 7, 3
"""Samples of a step; steps; samples of an evaluation, and of one of its batches."""
ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
AT_ONCE = {"per_device_train_batch_size": GLOBAL}
OVER_RANKS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
"""Two ranks: the numbers of ranks and of micro-batches differ, lest a factor for one stand in for the other."""


def folder() -> tempfile.TemporaryDirectory[str]:
    """In memory, where there is one: that a checkpoint is durable is not what is tested here."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def trainer_for(output: str, model: nn.Module, train: Any, judged: Any, **options: Any) -> Trainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "report_to": "none"}
    given = {"save_strategy": "no", "learning_rate": 0.01, "per_device_eval_batch_size": JUDGED_AT_ONCE}
    args = TrainingArguments(output, **{**quiet, **given, **options})
    return Trainer(model, args, collate, train_dataset=train, eval_dataset=judged)


def figures(architecture: Architecture, ragged: bool, shape: dict[str, int]) -> dict[str, Any]:
    """Loss and gradient norm of each step, and the loss of an evaluation before the first, without dropout."""
    train = training_set(architecture, ragged)
    judged = samples(architecture, JUDGED, ragged, seed=2)
    options = {**shape, "optim": "sgd", "max_steps": STEPS, "train_sampling_strategy": "sequential"}
    with folder() as output:
        trainer = trainer_for(output, architecture.model(), train, judged, **options)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {"eval": before, "loss": [one["loss"] for one in history], "norm": [one["grad_norm"] for one in history]}


def training_set(architecture: Architecture, ragged: bool) -> list[dict[str, Any]]:
    """Two global batches; where a sample is one target, those of a ragged set lack a sample each."""
    short = ragged and architecture.task not in BY_TARGET
    return samples(architecture, (GLOBAL - 2) if short else STEPS * GLOBAL, ragged)


class Own:
    """What a model says of samples by itself: nothing of the Trainer is between."""

    def __init__(self, architecture: Architecture) -> None:
        self.model = architecture.model()
        self.takes = inspect.signature(self.model.forward).parameters

    def loss(self, data: list[dict[str, Any]], **more: Any) -> torch.Tensor:
        batch = {name: value for name, value in collate(data).items() if name in self.takes}
        loss: torch.Tensor = self.model(**batch, **more)["loss"]
        return loss

    def mean(self, data: list[dict[str, Any]], size: int) -> float:
        """Of the losses of batches of a size, each as much as any other."""
        losses = [self.loss(data[first : first + size]).item() for first in range(0, len(data), size)]
        return sum(losses) / len(losses)

    def by_sample(self, data: list[dict[str, Any]], size: int) -> float:
        """Of the losses of batches of a size, each as much as it has samples."""
        parts = [data[first : first + size] for first in range(0, len(data), size)]
        return sum(self.loss(part).item() * len(part) for part in parts) / len(data)

    def norm(self, data: list[dict[str, Any]]) -> float:
        self.model.zero_grad()
        self.loss(data).backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients).item()

    def count(self, data: list[dict[str, Any]]) -> str:
        """What becomes of a count of targets: it changes the loss, or does not; or the model has no place for it."""
        if getattr(self.model, "accepts_loss_kwargs", None) is False:
            return "no place"
        if not any(name == "num_items_in_batch" or one.kind is one.VAR_KEYWORD for name, one in self.takes.items()):
            return "no place"
        with torch.no_grad():
            a, b = (self.loss(data, num_items_in_batch=torch.tensor(count)).item() for count in (10, 20))
        return "dropped" if a == b else "taken"


def own_figures(architecture: Architecture, ragged: bool) -> dict[str, Any]:
    train = training_set(architecture, ragged)[:GLOBAL]
    judged = samples(architecture, JUDGED, ragged, seed=2)
    own = Own(architecture)
    with torch.no_grad():
        judging = {"eval": own.loss(judged).item(), "eval by sample": own.by_sample(judged, JUDGED_AT_ONCE)}
        count = own.count(train)
    own.model.train()
    with torch.no_grad():
        said = {"loss": own.loss(train).item(), "mean of 4": own.mean(train, 4), "mean of 2": own.mean(train, 2)}
    return {**judging, **said, "count": count, "norm": own.norm(train)}


def alone(architecture: Architecture) -> dict[str, Any]:
    """What one process tells of the figures, for even and for ragged targets."""
    return {
        kind: {
            "own": own_figures(architecture, ragged),
            "at once": figures(architecture, ragged, AT_ONCE),
            "accumulated": figures(architecture, ragged, ACCUMULATED),
        }
        for kind, ragged in (("even", False), ("ragged", True))
    }


def over_ranks(architecture: Architecture) -> dict[str, Any]:
    """What each of two ranks tells of them; where a sample is one target, a ragged set is even for the ranks."""
    ragged = architecture.task in BY_TARGET
    kinds = {"even": False} | ({"ragged": True} if ragged else {})
    return {kind: figures(architecture, ragged, OVER_RANKS) for kind, ragged in kinds.items()}


def caught(run: Callable[[Architecture], Any], architecture: Architecture) -> Any:
    """What the run gives, or, in a line, why it gives nothing."""
    with quietly():
        try:
            return run(architecture)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers, peft and the Trainer print; afterwards they may again."""
    bars, disabled = transformers.logging.is_progress_bar_enabled(), logging.root.manager.disable
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers.logging.enable_progress_bar()


def on_two_ranks(chosen: list[Architecture]) -> dict[str, Any]:
    """All architectures in one pair of processes: starting it takes far longer than they do."""
    return {one.key: caught(over_ranks, one) for one in chosen}
