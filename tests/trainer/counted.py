"""The memory of a run, counted: every storage that torch makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainwright import TrainerCallback
from trainwright.distributed.named_state import held


class Counted(TorchDispatchMode):
    """``now`` and ``peak`` are bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.count(held(tensor).untyped_storage())
        return made

    def count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._sizes:
            weakref.finalize(storage, self._freed, name)
        self.now += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self.peak = max(self.peak, self.now)

    def _freed(self, name: int) -> None:
        self.now -= self._sizes.pop(name, 0)


@contextmanager
def resized_by_fsdp(counted: Counted) -> Iterator[None]:
    """Count the storages of gathered parameters, which FSDP frees and allocates in place."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param as module

    def followed(resize: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        def call(tensor: torch.Tensor) -> None:
            resize(tensor)
            counted.count(tensor.untyped_storage())

        return call

    with ExitStack() as stack:
        for name in ("alloc_storage", "free_storage"):
            stack.enter_context(mock.patch.object(module, name, followed(getattr(module, name))))
        yield


class FromTheSecondStep(TrainerCallback):
    def __init__(self, counted: Counted) -> None:
        self.counted, self.start = counted, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.start, self.counted.peak = self.counted.peak, self.counted.now
