"""What a checkpoint that no engine wrote holds, parameter by parameter: whole files, or the shards of FSDP.

It has the methods of :class:`trainwright.checkpoint.zero_partitions.Partitions`, so that an engine fills its partitions
from either. Of each file only the rows that a partition needs get into memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from trainwright.checkpoint.sharded import (
    OPTIMIZER_SHARDS,
    Shards,
    another_model,
    is_in_shards,
    nested,
    read_part,
)
from trainwright.checkpoint.weights import weights_of
from trainwright.checkpoint.zero_partitions import WEIGHT
from trainwright.contract import UserError
from trainwright.distributed.named_state import other_groups

WHOLE, NAMED = "optimizer.pt", "optimizer.bin"


class ByName:
    """The weights and the optimizer's state in a checkpoint, for a model that an engine holds.

    Args:
        groups: The names of the parameters in each group of this run's optimizer, in order.

    Raises:
        UserError: A file is missing or damaged, or is of another model or optimizer.
    """

    def __init__(self, folder: Path, model: nn.Module, groups: Sequence[Sequence[str]]) -> None:
        self._weights = weights_of(model, folder)
        forms, first = self._weights.forms, {id(parameter): name for name, parameter in model.named_parameters()}
        every = model.named_parameters(remove_duplicate=False)
        self._saved_as = {first[id(parameter)]: name for name, parameter in every if name in forms}
        self._shapes = {name: tuple(forms[saved].shape) for name, saved in self._saved_as.items()}
        if missing := [f"missing {name}" for group in groups for name in group if name not in self._shapes]:
            raise another_model(folder, missing)
        self._optimizer = (_InShards if is_in_shards(folder, OPTIMIZER_SHARDS) else _Whole)(folder, groups)
        self._check_shapes(folder)

    def _check_shapes(self, folder: Path) -> None:
        for name, state in self._optimizer.state.items():
            shapes = {tuple(value.shape) for value in state.values() if getattr(value, "ndim", 0)}
            if not shapes <= {self._shapes.get(name)}:
                raise UserError(f"{folder}: {other_groups([name])}")

    def piece(self, name: str, key: str, start: int, count: int) -> torch.Tensor:
        """``count`` elements of a flattened parameter, or of its state ``key``, from ``start`` on."""
        if not count or (key != WEIGHT and key not in self._optimizer.state.get(name, {})):
            return torch.zeros(count)
        shape = self._shapes[name]
        row = math.prod(shape[1:])
        first = start // row if shape else 0
        part = (slice(first, -(-(start + count) // row)),) if shape else ()
        if key == WEIGHT:
            rows = self._weights.read(self._saved_as[name], part)
        else:
            rows = self._optimizer.read(name, key, part)
        return rows.flatten()[start - first * row :][:count]

    def state_of(self, name: str) -> tuple[list[str], dict[str, Any]]:
        """The keys of a parameter's state that are as large as it, and the values of the others."""
        state = self._optimizer.state.get(name, {})
        keys = [key for key, value in state.items() if getattr(value, "ndim", 0)]
        return keys, {key: value for key, value in state.items() if key not in keys}

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, with the names of their parameters."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups


def filled_groups(folder: Path) -> list[int]:
    """Which groups of the optimizer in a checkpoint have parameters."""
    in_shards = is_in_shards(folder, OPTIMIZER_SHARDS)
    groups = _InShards(folder).param_groups if in_shards else _Whole(folder).param_groups
    return [number for number, group in enumerate(groups) if group["params"]]


class _Whole:
    """The file of a whole optimizer, which numbers the parameters or names them.

    Args:
        groups: The names of the parameters in each group; without them they stay numbered.

    Attributes:
        state: Name -> the state of a parameter, mapped from the file.
        param_groups: With the names of their parameters.
    """

    def __init__(self, folder: Path, groups: Sequence[Sequence[str]] | None = None) -> None:
        file = folder / (WHOLE if (folder / WHOLE).is_file() else NAMED)
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            self.state, self.param_groups = saved["state"], saved["param_groups"]
        except (KeyError, RuntimeError, EOFError, OSError, UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{file}: cannot be read ({reason}); resume from another checkpoint") from error
        if file.name == WHOLE and groups is not None:
            self._name(folder, groups)

    def _name(self, folder: Path, groups: Sequence[Sequence[str]]) -> None:
        """Put the names in place of the numbers; each group has those of this run's group in the same place."""
        saved = [group for group in self.param_groups if group["params"]]
        if [len(group["params"]) for group in saved] != [len(group) for group in groups]:
            raise UserError(f"{folder}: {other_groups([name for group in groups for name in group])}")
        names = {
            number: name
            for group, own in zip(saved, groups, strict=True)
            for number, name in zip(group["params"], own, strict=True)
        }
        self.state = {names[number]: entries for number, entries in self.state.items()}
        self.param_groups = [{**group, "params": [names[number] for number in group["params"]]} for group in saved]

    def read(self, name: str, key: str, part: tuple[slice, ...]) -> torch.Tensor:
        value: torch.Tensor = self.state[name][key]
        return value[part]


class _InShards:
    """The shards of an optimizer, which name the parameters; like :class:`_Whole`, with tensors on the meta device."""

    def __init__(self, folder: Path, groups: Any = None) -> None:
        self._shards = shards = Shards(folder, OPTIMIZER_SHARDS)
        forms = {path: shards.form(path) for path in shards.paths()}
        small = {
            path: None if form is None else torch.empty_like(form, device="cpu")
            for path, form in forms.items()
            if form is None or not form.ndim
        }
        state = nested({**forms, **shards.read(small)})
        self.state, self.param_groups = state["state"], state["param_groups"]

    def read(self, name: str, key: str, part: tuple[slice, ...]) -> torch.Tensor:
        return read_part(self._shards, ("state", name, key), part)
