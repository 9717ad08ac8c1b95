"""Copies of a run's state on the host, so that training goes on while they are written.

The copies live in memory that is kept from one checkpoint to the next: the first touch of a page costs ten times what
copying into it does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainwright.devices import xla

Copy = Callable[[str, Any], Any]
"""From a name and a nest of tensors and plain values to what is written."""


def as_it_is(name: str, state: Any) -> Any:
    """For a checkpoint that is written before training goes on."""
    return state


class Stager:
    """Copies nests of tensors to the host. What it returned is overwritten when the same name is copied again."""

    def __init__(self) -> None:
        self._places: dict[Any, torch.Tensor] = {}

    def copy(self, name: str, state: Any) -> Any:
        """Tensors that are one and the same in ``state`` are so in the copy."""
        return self._copy((name,), state, {})

    def _copy(self, path: tuple[Any, ...], value: Any, seen: dict[Any, torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(path, value.detach(), seen)
        if isinstance(value, Mapping):
            return {key: self._copy((*path, key), item, seen) for key, item in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self._copy((*path, index), item, seen) for index, item in enumerate(value))
        return copy.deepcopy(value)

    def _copy_tensor(self, path: tuple[Any, ...], tensor: torch.Tensor, seen: dict[Any, torch.Tensor]) -> torch.Tensor:
        if tensor.is_meta or type(tensor) is not torch.Tensor:
            return tensor.clone().cpu() if not tensor.is_meta else tensor
        if tensor.device.type == "xla":  # whose tensors have no address, and come to the host as new ones
            known = xla.identity(tensor)
            if known not in seen:
                seen[known] = tensor.cpu()
            return seen[known]
        identity = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and identity in seen:
            return seen[identity]
        place = self._places.get(path)
        if place is None or (place.shape, place.stride(), place.dtype) != identity[2:]:
            place = self._places[path] = _place_for(tensor)
        place.copy_(tensor)
        seen[identity] = place
        return place


def _place_for(tensor: torch.Tensor) -> torch.Tensor:
    """Memory on the host for a tensor like this one; pinned where it is filled from an accelerator."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type != "cpu")
