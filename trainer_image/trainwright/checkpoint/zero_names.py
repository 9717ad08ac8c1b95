"""Resuming without DeepSpeed from its checkpoints: weights and optimizer by the names of the parameters.

Each rank reads, from the files of all ranks that wrote, the parts of weights and state that it holds: all of them, or
its shards under FSDP. Weights are those in float32 that the engine's optimizer steps, whatever the run computed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright.checkpoint.scales import for_torch
from trainwright.checkpoint.sharded import another_model
from trainwright.checkpoint.zero import check_names
from trainwright.checkpoint.zero_partitions import WEIGHT, Partitions
from trainwright.distributed.named_state import (
    groups_by_name,
    held,
    is_sharded,
    matched_group,
    model_state,
    names_in_order,
    parameters_in_order,
    part_of,
    with_part,
)
from trainwright.distributed.wrapping import unwrap
from trainwright.integrations.peft import adapter_names


@torch.no_grad()
def load_partitions(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint of DeepSpeed into a model, or into the shards of it that this rank holds.

    Raises:
        UserError: A file is missing or damaged, or is of another model.
    """
    model, partitions = unwrap(model), Partitions(folder)
    check_names(model, folder, {name: tuple(partitions.forms[name].shape) for name in partitions.trained})
    missing = []
    for name, value in model_state(model).items():
        saved = partitions.aliases.get(name, name)
        if saved in partitions.forms:
            held(value).copy_(partitions.part(saved, WEIGHT, part_of(value)))
        elif isinstance(value, torch.Tensor):
            missing.append(name)
    if missing and not adapter_names(model):  # whose base model is not saved
        raise another_model(folder, [f"missing {name}" for name in missing])


def optimizer_of_partitions(model: nn.Module, optimizer: Any, folder: Path) -> dict[str, Any]:
    """Read the optimizer's state, in the form of :func:`trainwright.distributed.named_state.optimizer_state`.

    Raises:
        UserError: A file is missing or damaged, or the groups of parameters are not those of this run.
    """
    partitions = Partitions(folder)
    saved, own = partitions.param_groups(), optimizer.state_dict()["param_groups"]
    groups = [
        {**matched_group(saved, names, group, folder), "params": names}
        for names, group in zip(groups_by_name(model, optimizer), own, strict=True)
    ]
    parameters = dict(zip(names_in_order(model, optimizer), parameters_in_order(optimizer), strict=True))
    states = {name: _state(partitions, name, parameter) for name, parameter in parameters.items()}
    return {"state": {name: state for name, state in states.items() if state}, "param_groups": groups}


def _state(partitions: Partitions, name: str, parameter: torch.Tensor) -> dict[str, Any]:
    """The state of one parameter, of which this rank holds a part."""
    keys, values = partitions.state_of(name)
    state = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
    for key in keys:
        part = partitions.part(name, key, part_of(parameter))
        state[key] = with_part(parameter, part) if is_sharded(parameter) else part
    return state


def scaler_of_partitions(folder: Path, fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The state of torch's gradient scaler that goes on from DeepSpeed's; ``fresh`` is that of a new one."""
    return for_torch(Partitions(folder).scaler, fresh)
