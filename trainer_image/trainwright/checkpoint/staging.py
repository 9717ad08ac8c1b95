"""Copies of a run's state on the host, so that training continues while they are written.

The memory of the copies is kept from one checkpoint to the next, because the first access to a page costs ten times as
much as copying into it.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from trainwright.devices import xla
from trainwright.distributed.named_state import held, is_sharded, with_part

CHUNK_BYTES = 4 << 20
MOST_THREADS = 8
"""More threads do not speed up memory."""
Copy = Callable[[str, Any], Any]
"""Takes a name and a nest of tensors and plain values; returns what is written."""


def as_it_is(name: str, state: Any) -> Any:
    """No copy, for a checkpoint that is written before training continues."""
    return state


class Stager:
    """Copies nests of tensors to the host. The next copy with the same name overwrites the returned tensors."""

    def __init__(self) -> None:
        self._places: dict[Any, torch.Tensor] = {}
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copy(self, name: str, state: Any) -> Any:
        """Copies ``state``; a tensor that occurs several times in it is copied once."""
        copied, waiting = self._copy((name,), state, {}), self._waiting
        self._waiting = []
        _copy_bytes(waiting)
        return copied

    def _copy(self, path: tuple[Any, ...], value: Any, seen: dict[Any, torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(path, value.detach(), seen)
        if isinstance(value, Mapping):
            return {key: self._copy((*path, key), item, seen) for key, item in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self._copy((*path, index), item, seen) for index, item in enumerate(value))
        return copy.deepcopy(value)

    def _copy_tensor(self, path: tuple[Any, ...], tensor: torch.Tensor, seen: dict[Any, torch.Tensor]) -> torch.Tensor:
        if is_sharded(tensor):
            part = self._copy_tensor(path, held(tensor), seen)
            return with_part(tensor, part)
        if tensor.is_meta or type(tensor) is not torch.Tensor:
            return tensor.clone().cpu() if not tensor.is_meta else tensor
        if tensor.device.type == "xla":  # XLA tensors have no address, and each transfer creates a new host tensor
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
        if _is_plain(tensor):
            self._waiting.append((place, tensor))
        else:
            place.copy_(tensor)
        seen[identity] = place
        return place


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its values lie in host memory, one after the other."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _copy_bytes(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fill the first tensor of each pair with the bytes of the second, on as many threads as torch uses.

    A thread takes the next chunk when it has finished one, so no thread waits for one that gets no processor. torch's
    own copy does wait, and takes several times as long on a busy machine.
    """
    chunks = [
        (place.data_ptr() + start, tensor.data_ptr() + start, min(CHUNK_BYTES, tensor.nbytes - start))
        for place, tensor in pairs
        for start in range(0, tensor.nbytes, CHUNK_BYTES)
    ]
    remaining = iter(chunks)

    def work() -> None:
        for chunk in remaining:
            ctypes.memmove(*chunk)

    wanted = sum(size for *_, size in chunks) // CHUNK_BYTES
    helpers = [threading.Thread(target=work) for _ in range(min(torch.get_num_threads(), MOST_THREADS, wanted) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()


def _place_for(tensor: torch.Tensor) -> torch.Tensor:
    """Host memory for a tensor like this one; pinned if it is filled from an accelerator."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type != "cpu")


def return_memory() -> None:
    """Give the memory of freed tensors back to the system; the C library keeps that of tensors of middling size."""
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
