"""Resuming under ZeRO from checkpoints of another stage, of another number of ranks, and of no engine at all.

Each rank asks its engine for its own partition, fills it with what the files of the other layout hold, and has the
engine load that. So nothing is converted on the disk, and no rank reads more than its part of the optimizer.
(DeepSpeed's own universal checkpoints are converted on the disk first, run code from pickles, know only Adam under ZeRO
3, and give all groups of parameters the weight decay of the first.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from trainwright.checkpoint.by_name import ByName
from trainwright.checkpoint.scales import for_engine
from trainwright.checkpoint.weights import load_weights
from trainwright.checkpoint.zero import check_names, shapes_of
from trainwright.checkpoint.zero_partitions import WEIGHT, Partitions
from trainwright.distributed.named_state import gathered, is_partitioned, matched_group
from trainwright.distributed.ranks import Ranks

T = TypeVar("T")


class Saved(Protocol):
    """What a checkpoint of any layout tells of each parameter."""

    def piece(self, name: str, key: str, start: int, count: int) -> torch.Tensor:
        """``count`` elements of a flattened parameter, or of its state ``key``, from ``start`` on."""

    def state_of(self, name: str) -> tuple[list[str], dict[str, Any]]:
        """The keys of a parameter's state that are as large as it, and the values of the others."""

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, with the names of their parameters."""


def load_other_layout(engine: Any, folder: Path, schedule: Any, ranks: Ranks) -> None:
    """Restore weights, optimizer, schedule and counters of another engine; all ranks call it together.

    Raises:
        UserError: A file is missing or damaged, or is of another model; the same on all ranks.
    """

    def read() -> tuple[Partitions, dict[str, Any]]:
        partitions = Partitions(folder)
        check_names(engine.module, folder, shapes_of(partitions.first))
        return partitions, _own_state(engine, partitions, folder)

    partitions, state = _on_each(ranks, read)
    _load_weights(engine, partitions)
    _load_state(engine, state, ranks)
    if getattr(engine.optimizer, "dynamic_loss_scale", False):
        vars(engine.optimizer.loss_scaler).update(partitions.scaler)
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, partitions.first[counter])
    if schedule is not None and partitions.first.get("lr_scheduler"):
        schedule.load_state_dict(partitions.first["lr_scheduler"])


def load_by_name(engine: Any, folder: Path, groups: Sequence[Sequence[str]], steps: int, ranks: Ranks) -> None:
    """Restore weights and optimizer from a checkpoint that no engine wrote; all ranks call it together.

    Args:
        groups: The names of the parameters in each group of the optimizer that the engine was given.
        steps: The number of steps that were made.

    Raises:
        UserError: A file is missing or damaged, or is of another model; the same on all ranks.
    """
    scaler = folder / "scaler.pt"

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        scales = torch.load(scaler, weights_only=True) if scaler.is_file() else {}
        return _own_state(engine, ByName(folder, engine.module, groups), folder), scales

    state, scales = _on_each(ranks, read)
    load_weights(engine.module, folder)
    _load_state(engine, state, ranks)
    if getattr(engine.optimizer, "dynamic_loss_scale", False):
        vars(engine.optimizer.loss_scaler).update(for_engine(scales, steps))
    engine.global_steps, engine.skipped_steps = steps, 0
    engine.global_samples = steps * engine.train_batch_size()


def _on_each(ranks: Ranks, read: Callable[[], T]) -> T:
    """What this rank reads; an error of one rank is raised on all."""
    found: list[T] = []
    ranks.agree(lambda: found.append(read()))
    return found[0]


def _load_state(engine: Any, state: dict[str, Any], ranks: Ranks) -> None:
    rank = engine.optimizer.dp_process_group.rank() if ranks.world_size > 1 else 0
    engine.optimizer.load_state_dict({rank: state}, load_optimizer_states=True, load_from_fp32_weights=True)


class _Cut(NamedTuple):
    """A stretch of a parameter in this rank's partition."""

    name: str
    place: int
    start: int
    size: int


def _own_state(engine: Any, saved: Saved, folder: Path) -> dict[str, Any]:
    """What this rank would have saved in its own layout, as ``load_state_dict`` of the engine's optimizer takes it."""
    is_cut = engine.zero_optimization_partition_weights()
    flats = engine.optimizer.fp32_partitioned_groups_flat if is_cut else _flats_of(engine.optimizer)
    cuts = list(_cuts_of_parameters(engine) if is_cut else _cuts_of_groups(engine))
    weights = [_filled(flat, own, saved, WEIGHT) for flat, own in zip(flats, cuts, strict=True)]
    states = [_state(flat, own, saved) for flat, own in zip(flats, cuts, strict=True)]
    state: dict[str, Any] = engine.optimizer.state_dict()
    inner, flat = ("optimizer_state_dict", "fp32_flat_groups") if is_cut else ("base_optimizer_state", _FLAT)
    state[flat] = weights
    state[inner] = {
        "state": {number: values for number, values in enumerate(states) if values},
        "param_groups": _groups(engine, state[inner]["param_groups"], saved, folder),
    }
    return state


_FLAT = "single_partition_of_fp32_groups"


def _flats_of(optimizer: Any) -> list[torch.Tensor]:
    """The float32 partitions of ZeRO 1 and 2; the engine for bfloat16 with stage 1 has another name for them."""
    found: list[torch.Tensor] = getattr(optimizer, _FLAT, None) or optimizer.fp32_groups_flat_partition
    return found


def _cuts_of_groups(engine: Any) -> Iterator[list[_Cut]]:
    optimizer = engine.optimizer
    for group in optimizer.bit16_groups if hasattr(optimizer, "bit16_groups") else optimizer.bf16_groups:
        mapped = [(engine.param_names[parameter], parameter._hp_mapping) for parameter in group]
        yield [
            _Cut(name, own.hp_fragment_address.start, own.lp_fragment_address.start, own.hp_fragment_address.numel)
            for name, own in mapped
            if own is not None
        ]


def _cuts_of_parameters(engine: Any) -> Iterator[list[_Cut]]:
    for group in engine.optimizer.fp16_groups:
        cuts, place = [], 0
        for parameter in group:
            size = parameter.ds_tensor.ds_numel
            start = min(parameter.ds_numel, size * engine.optimizer._get_param_partition_rank(parameter))
            count = min(size, parameter.ds_numel - start)
            cuts.append(_Cut(engine.param_names[parameter], place, start, count))
            place += size
        yield cuts


def _filled(like: torch.Tensor, cuts: list[_Cut], saved: Saved, key: str) -> torch.Tensor:
    flat = torch.zeros(like.shape, dtype=torch.float32)
    for cut in cuts:
        flat[cut.place : cut.place + cut.size] = saved.piece(cut.name, key, cut.start, cut.size)
    return flat


def _state(like: torch.Tensor, cuts: list[_Cut], saved: Saved) -> dict[str, Any]:
    """The state of the optimizer for one flattened partition."""
    each = (saved.state_of(cut.name) for cut in cuts)
    keys, values = next((found for found in each if any(found)), ([], {}))  # one that never had a gradient has none
    return {**values, **{key: _filled(like, cuts, saved, key) for key in keys}}


def _groups(engine: Any, own: list[dict[str, Any]], saved: Saved, folder: Path) -> list[dict[str, Any]]:
    """This run's groups with the values that were saved for the same parameters."""
    groups = saved.param_groups()
    found = [
        (matched_group(groups, list(shapes), before, folder), before)
        for shapes, before in zip(engine._get_zero_param_shapes(), own, strict=True)
    ]
    return [{**group, "params": before["params"]} for group, before in found]


def _load_weights(engine: Any, partitions: Partitions) -> None:
    """Load what the engine's optimizer does not: whole parameters of ZeRO 1 and 2, frozen ones, and buffers."""
    trained = set(partitions.trained)
    for name, tensor in [*engine.module.named_parameters(), *engine.module.named_buffers()]:
        if name in partitions.forms and not (name in trained and is_partitioned(tensor)):
            with torch.no_grad(), gathered([tensor], writes=True):
                tensor.copy_(partitions.read([name])[name].view(tensor.shape))
