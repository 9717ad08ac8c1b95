"""Checks that all ranks were given the same run: where they differ, one would wait in a collective for the others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from trainwright.arguments.errors import ModelError, TrainerError
from trainwright.distributed.ranks import Ranks
from trainwright.training.train_length import length_of

ALIKE = (
    "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "logging_strategy", "logging_steps", "eval_strategy", "eval_steps", "eval_on_start",
    "save_strategy", "save_steps", "load_best_model_at_end", "optim", "bf16", "fp16",
)  # fmt: skip
"""Arguments that decide how many steps and collectives a rank makes."""


def check_alike(trainer: Any, resume_from: str | bool | None) -> None:
    """Raise if ranks differ in what all must have alike; all ranks call this together.

    Raises:
        TrainerError: In an argument, the checkpoint to resume from, the length of the data, or a node's output folder.
        ModelError: In the names, shapes or number formats of the parameters.
    """
    ranks: Ranks = trainer.checkpoints.ranks
    if ranks.world_size == 1:
        return
    forms = _forms(trainer.model)
    node = ranks.rank - ranks.local_rank
    seen = ranks.gather((_given(trainer, resume_from), _digest(forms), node, _output(trainer)))
    given, digests, nodes, outputs = zip(*seen, strict=True)
    for name in given[0]:
        _check(name, [values[name] for values in given])
    if len(set(digests)) > 1:
        _refuse_models(ranks.gather(forms))
    for first in set(nodes):
        members = [rank for rank, node in enumerate(nodes) if node == first]
        _check("output_dir", outputs, members, "so a checkpoint would lie in parts")


def _given(trainer: Any, resume_from: str | bool | None) -> dict[str, str]:
    values = {name: getattr(trainer.args, name, None) for name in ALIKE}
    values["resume_from_checkpoint"] = os.path.basename(resume_from) if isinstance(resume_from, str) else resume_from
    if trainer.args.max_steps <= 0:
        values["num_train_epochs"] = trainer.args.num_train_epochs
        values["the length of train_dataset"] = length_of(trainer.train_dataset)
    return {name: str(getattr(value, "value", value)) for name, value in values.items()}


def _output(trainer: Any) -> str | None:
    """The folder of the checkpoints; ranks of other nodes may see it elsewhere."""
    return os.path.realpath(trainer.args.output_dir) if trainer.args.save_strategy != "no" else None


def _check(
    name: str,
    values: Sequence[Any],
    members: Sequence[int] | None = None,
    reason: str = "so one would wait for the other",
) -> None:
    members = range(len(values)) if members is None else members
    first = members[0]
    for rank in members:
        if values[rank] != values[first]:
            raise TrainerError(
                f"{name}: rank {first} has {values[first]} and rank {rank} has {values[rank]}, {reason}; give all "
                "ranks the same"
            )


def _forms(model: nn.Module) -> list[tuple[str, str]]:
    """The name of each parameter, and its shape and number format."""
    parameters = model.named_parameters()
    return [(name, f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}") for name, value in parameters]


def _digest(forms: list[tuple[str, str]]) -> str:
    return hashlib.sha256(repr(forms).encode()).hexdigest()


def _refuse_models(models: Sequence[list[tuple[str, str]]]) -> None:
    rank = next(rank for rank, forms in enumerate(models) if forms != models[0])
    first, other = dict(models[0]), dict(models[rank])
    name = next((name for name in {**first, **other} if first.get(name) != other.get(name)), "their order")
    raise ModelError(
        f"model: the ranks have different ones: {name} is {first.get(name, 'absent')} on rank 0 and "
        f"{other.get(name, 'absent')} on rank {rank}; make the same model on all"
    )
