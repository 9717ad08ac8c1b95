"""Short runs of the Trainer for tests: made, or made and trained, with quiet defaults."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer import tiny
from trainwright import Trainer, TrainingArguments


def make(
    folder: Any, model: nn.Module | None = None, data: Any = None, kind: type = Trainer, **options: Any
) -> Trainer:
    """``options``: arguments, and those of the Trainer under ``trainer``."""
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
        "per_device_train_batch_size": 8, "learning_rate": 1e-2,
    }  # fmt: skip
    given = {"eval_dataset": tiny.vectors(11), **options.pop("trainer", {})}
    args = TrainingArguments(**(defaults | options))
    data = tiny.vectors() if data is None else data
    return kind(model if model is not None else tiny.classifier(), args, train_dataset=data, **given)


def trained(folder: Any, *args: Any, **options: Any) -> Trainer:
    """Made and trained at once: making one seeds the generators."""
    trainer = make(folder, *args, **options)
    trainer.train()
    return trainer


def logged(trainer: Trainer, key: str) -> list[float]:
    """The values of ``key`` in the log, in their order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def quiet(model: nn.Module) -> nn.Module:
    """Without dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all that the model would save."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """The names under which the two states hold other values."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
