"""What a checkpoint of DeepSpeed holds, tensor by tensor, whichever stage and number of ranks wrote it.

Each rank's file holds its partition of the float32 weights and of the optimizer's state, flattened. ZeRO 1 and 2 cut
the parameters of a group, laid one after the other, into one partition for each rank; ZeRO 3 cuts each parameter. Here
both are parameters that consist of fragments, so a run of any layout reads those that it needs. The files are mapped:
only what is read gets into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainwright.checkpoint.zero import MODEL, optimizer_files, read, shapes_of, tag_of, written
from trainwright.contract import UserError

WEIGHT = "fp32"
"""The key of the weights; the others are those of the optimizer's state."""


class Fragment(NamedTuple):
    """A stretch of a flattened parameter: in which rank's file it lies, and where."""

    rank: int
    group: int
    start: int
    size: int


class Partitions:
    """The float32 weights and the optimizer's state in a checkpoint of DeepSpeed.

    Attributes:
        forms: Name -> a tensor on the meta device, of the shape and number format of the whole.
        trained: The names of the parameters that the optimizer steps.
        aliases: Name -> the name under which its tensor is saved, for tied weights.
        first: What the first rank's file of the model says besides: counters, and the state of the schedule.
        scaler: The values of a loss scaler that adapts itself, if there was one.

    Raises:
        UserError: A file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        place = folder / str(tag_of(folder))
        self._is_cut = written(folder).parameters
        states = [read(path, True)["optimizer_state_dict"] for path in optimizer_files(place)]
        names = [f"zero_pp_rank_{rank}_{MODEL}" for rank in range(len(states))] if self._is_cut else [MODEL]
        models = [read(next(iter(place.glob(f"*{name}")), place), True) for name in names]
        self.first = models[0]
        if len(states) != self.first["dp_world_size"]:
            raise UserError(
                f"{folder}: was written by {self.first['dp_world_size']} processes and has the partitions of "
                f"{len(states)}; resume from another checkpoint"
            )
        self._flat = [[group.flatten() for group in state[_WEIGHTS[self._is_cut]]] for state in states]
        self._inner = [state[_OPTIMIZER[self._is_cut]] for state in states]
        self.scaler = vars(states[0]["loss_scaler"]) if states[0].get("dynamic_loss_scale") else {}
        self._frozen = [model.get("frozen_param_fragments") or {} for model in models]
        self._module: dict[str, torch.Tensor] = {
            name: value
            for name, value in self.first["module"].items()
            if isinstance(value, torch.Tensor) and value.numel()
        }
        shapes, self._frozen_shapes = shapes_of(self.first), dict(self.first.get("frozen_param_shapes") or {})
        self.trained = list(shapes)
        self.aliases: dict[str, str] = dict(self.first.get("shared_params") or {})
        self._fragments = dict(self._cut(shapes) if self._is_cut else self._mapped(states))
        self.forms = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
        self.forms |= {name: torch.empty(tuple(shape), device="meta") for name, shape in self._frozen_shapes.items()}
        self.forms |= {
            name: torch.empty_like(value, device="meta")
            for name, value in self._module.items()
            if name not in self.forms and name not in self.aliases
        }

    def _cut(self, shapes: dict[str, Any]) -> Iterator[tuple[str, list[Fragment]]]:
        """ZeRO 3: equal parts of each parameter, of which the last is padded, one after the other in each file."""
        ranks, group, offset = len(self._flat), 0, 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            size = math.ceil(count / ranks)
            while size and offset >= self._flat[0][group].numel():
                group, offset = group + 1, 0
            sizes = [max(0, min(size, count - rank * size)) for rank in range(ranks)]
            yield name, [Fragment(rank, group, offset, part) for rank, part in enumerate(sizes) if part]
            offset += size

    def _mapped(self, states: Sequence[Any]) -> Iterator[tuple[str, list[Fragment]]]:
        """ZeRO 1 and 2: as each file says where its fragments lie."""
        found: dict[str, list[Fragment]] = {name: [] for name in self.trained}
        for rank, state in enumerate(states):
            for group, places in enumerate(state["param_slice_mappings"]):
                for name, place in places.items():
                    found[name].append(Fragment(rank, group, place.start, place.numel))
        yield from found.items()

    # -- tensors

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Put the weights of some tensors together."""
        return {name: self._whole(name) for name in names}

    def _whole(self, name: str) -> torch.Tensor:
        shape = tuple(self.forms[name].shape)
        count = math.prod(shape)
        if name in self._fragments:
            return self.piece(name, WEIGHT, 0, count).view(shape)
        if self._is_cut and name in self._frozen_shapes:
            parts = [fragments[name].flatten().float() for fragments in self._frozen]
            return torch.cat(parts)[:count].view(shape)
        return self._module[name].clone()

    def part(self, name: str, key: str, part: tuple[slice, ...]) -> torch.Tensor:
        """A part of a tensor, or of its state ``key``, as a copy; only rows that it needs get into memory."""
        shape = tuple(self.forms[name].shape)
        if not shape or name not in self._fragments:
            value = self._whole(name) if key == WEIGHT else self.piece(name, key, 0, 1).view(shape)
            return value[part].clone()
        row, count = math.prod(shape[1:]), part[0].stop - part[0].start
        rows = self.piece(name, key, part[0].start * row, count * row)
        return rows.view(count, *shape[1:])[(slice(None), *part[1:])].clone()

    def piece(self, name: str, key: str, start: int, count: int) -> torch.Tensor:
        """``count`` elements of a flattened parameter, or of its state ``key``, from ``start`` on."""
        parts, offset = [], 0
        for fragment in self._fragments[name]:
            first, last = max(start, offset), min(start + count, offset + fragment.size)
            if first < last:
                flat = self._flat_of(fragment, key)
                parts.append(flat[fragment.start + first - offset : fragment.start + last - offset])
            offset += fragment.size
        return torch.cat(parts) if parts else torch.empty(0)

    def _flat_of(self, fragment: Fragment, key: str) -> torch.Tensor:
        if key == WEIGHT:
            weights: torch.Tensor = self._flat[fragment.rank][fragment.group]
            return weights
        flat: torch.Tensor = self._inner[fragment.rank]["state"][fragment.group][key].flatten()
        return flat

    # -- the optimizer

    def state_of(self, name: str) -> tuple[list[str], dict[str, Any]]:
        """The keys of a parameter's state that are as large as it, and the values of the others."""
        fragment = self._fragments[name][0]
        state = self._inner[fragment.rank]["state"].get(fragment.group, {})
        keys = [key for key, value in state.items() if isinstance(value, torch.Tensor) and value.ndim]
        return keys, {key: value for key, value in state.items() if key not in keys}

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, with the names of their parameters."""
        groups = []
        for group, shapes in zip(self._inner[0]["param_groups"], self.first["param_shapes"], strict=True):
            groups.append({**group, "params": list(shapes)})
        return groups


_WEIGHTS = {True: "fp32_flat_groups", False: "single_partition_of_fp32_groups"}
_OPTIMIZER = {True: "optimizer_state_dict", False: "base_optimizer_state"}
"""Whether ZeRO 3 wrote a file -> the key in it."""
