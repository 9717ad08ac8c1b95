"""The state of a model and its optimizer by the names of the parameters, whatever part of each tensor a rank holds.

A checkpoint that names its tensors can be read by a run of another layout: a :class:`DTensor` says which part of the
whole this rank holds, so each rank reads that part. Optimizers number their parameters, in the order of the parameter
groups, which is the same in every layout.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from trainwright.contract import UserError
from trainwright.distributed.wrapping import unwrap

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether ``value`` is a tensor of which this rank may hold only a part."""
    module = sys.modules.get("torch.distributed.tensor")  # takes seconds to import, and without it there are none
    return module is not None and isinstance(value, module.DTensor)


def part_of(value: torch.Tensor) -> tuple[slice, ...]:
    """Return which part of the whole tensor this rank holds, as one slice for each dimension."""
    if not is_sharded(value):
        return tuple(slice(0, size) for size in value.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offsets = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, shape, strict=True))


def held(value: torch.Tensor) -> torch.Tensor:
    """Return the values that this rank holds, without a copy."""
    return value._local_tensor.detach() if is_sharded(value) else value.detach()


def with_part(like: DTensor, part: torch.Tensor) -> DTensor:
    """Return a tensor that is spread like ``like``, and of which this rank holds ``part``, on any device."""
    from torch.distributed.tensor import DTensor

    spec = like._spec
    if part.dtype != like.dtype and spec.tensor_meta is not None:
        spec = dataclasses.replace(spec, tensor_meta=spec.tensor_meta._replace(dtype=part.dtype))
    return DTensor(part, spec, requires_grad=False)


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on every rank; all ranks call this together."""
    if not is_sharded(value):
        return value.detach()
    device = value.device_mesh.device_type
    if value.device.type != device:  # offloaded, and the ranks exchange only what is on the device
        return with_part(value, held(value).to(device)).full_tensor().detach()
    full: torch.Tensor = value.full_tensor().detach()
    return full


def forms_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name in the ``state_dict`` -> a tensor on the meta device, of the shape and number format of the whole."""
    parameters, made = dict(_parameters(model)), dict[int, torch.Tensor]()
    forms = {}
    for name, value in model_state(model).items():
        if isinstance(value, torch.Tensor):
            own = parameters.get(name, value)
            form = torch.empty(getattr(own, "ds_shape", own.shape), dtype=value.dtype, device="meta")
            forms[name] = made.setdefault(id(own), form)  # tied weights share one form
    return forms


def wholes(model: nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return some tensors of the ``state_dict`` whole, on every rank; all ranks call this together."""
    parameters = dict(_parameters(model))
    partitioned = [parameters[name] for name in names if is_partitioned(parameters.get(name))]
    if not partitioned:
        state = model_state(model)
        return {name: whole(state[name]) for name in names}
    with gathered(partitioned):
        state = model_state(model)
        return {name: state[name].detach().clone() for name in names}


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return unwrap(model).named_parameters(remove_duplicate=False)


def is_partitioned(tensor: Any) -> bool:
    """Whether this is a parameter under ZeRO 3, of which a rank holds a part."""
    return hasattr(tensor, "ds_id")


@contextmanager
def gathered(parameters: Iterable[torch.Tensor], writes: bool = False) -> Iterator[None]:
    """A context in which partitioned parameters are whole; all ranks enter it together.

    Args:
        writes: Rank 0 changes them, and the other ranks get what it wrote.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if writes else None):
        yield


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return the ``state_dict``: names -> tensors, or shards where the model is sharded."""
    state: dict[str, Any] = unwrap(model).state_dict()
    return state


def optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return ``{"state": {name: ...}, "param_groups": [{"params": [name], ...}]}``, the form of torch and accelerate.

    Raises:
        UserError: The optimizer has parameters that are not the model's.
    """
    names = names_in_order(model, optimizer)
    saved = optimizer.state_dict()
    state = {names[number]: entries for number, entries in saved["state"].items()}
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in saved["param_groups"]]
    return {"state": state, "param_groups": groups}


def numbered(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of :func:`optimizer_state` in the form of ``optimizer.load_state_dict``.

    Raises:
        UserError: The names are not those of this optimizer.
    """
    numbers = {name: number for number, name in enumerate(names_in_order(model, optimizer))}
    saved = [group["params"] for group in state["param_groups"]]
    for theirs, ours in zip_longest(saved, groups_by_name(model, optimizer), fillvalue=list[str]()):
        if differing := sorted(set(theirs) ^ set(ours)):
            raise other_groups(differing)
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: entries for name, entries in state["state"].items()}, "param_groups": groups}


def other_groups(differing: Sequence[str]) -> UserError:
    """The error for a checkpoint whose optimizer has other groups of parameters; names the first that differ."""
    return UserError(
        f"the optimizer's groups of parameters are not those of this run ({', '.join(differing[:3])}); create the "
        "model and its parameter groups as they were trained"
    )


def groups_by_name(model: nn.Module, optimizer: Any) -> list[list[str]]:
    """Return the names of the parameters in each of the optimizer's groups."""
    names = iter(names_in_order(model, optimizer))
    return [list(islice(names, len(group["params"]))) for group in optimizer.param_groups]


def matched_group(
    saved: Iterable[dict[str, Any]], names: Sequence[str], own: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Return the group that was saved of the same parameters, wherever it stands; an empty group stays as it is.

    Args:
        saved: Groups with the names of their parameters.
        own: The group of this run.

    Raises:
        UserError: There is none, or it lacks settings that this optimizer has.
    """
    if not names:
        return own
    found = next((group for group in saved if set(group["params"]) == set(names)), None)
    if found is None:
        raise UserError(f"{folder}: {other_groups(sorted(names))}")
    if lacking := sorted(own.keys() - found.keys()):
        raise other_optimizer(folder, lacking)
    return found


def other_optimizer(folder: Path, lacking: Iterable[str]) -> UserError:
    """The error for the state of another optimizer, which lacks some settings of this run's."""
    return UserError(
        f"{folder}: holds the state of another optimizer, one without {', '.join(lacking)}; set optim as it was, or "
        "begin anew with its model"
    )


def names_in_order(model: nn.Module, optimizer: Any) -> list[str]:
    """Return the names of the optimizer's parameters, in the order in which it numbers them."""
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    try:
        return [names[id(parameter)] for parameter in parameters_in_order(optimizer)]
    except KeyError:
        raise UserError(
            "optimizer: it holds parameters that are not the model's, so their state cannot be saved by name; give it "
            "the parameters of the model"
        ) from None


def parameters_in_order(optimizer: Any) -> Iterator[torch.Tensor]:
    """Yield the optimizer's parameters in the order in which it numbers them."""
    for group in optimizer.param_groups:
        yield from group["params"]


def parts_like(parameters: list[torch.Tensor], state: dict[str, Any]) -> dict[str, Any]:
    """Replace the whole tensors in a numbered optimizer state by this rank's parts of them.

    A tensor of the shape of its parameter is spread like it; others (counters) are the same on all ranks.
    """

    def part(parameter: torch.Tensor) -> Callable[[Any], Any]:
        def of(value: Any) -> Any:
            is_alike = isinstance(value, torch.Tensor) and value.ndim and value.shape == parameter.shape
            if not (is_alike and is_sharded(parameter)):
                return value
            return with_part(parameter, value[part_of(parameter)].clone())

        return of

    kept = {
        number: {name: part(parameters[number])(value) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": kept}
