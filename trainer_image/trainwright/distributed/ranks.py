"""The processes that train together, and all collectives of the package: sums, gathers, errors, a barrier.

Each call is one collective. A step has only one: the sum of the targets that a loss is averaged over, and with
``onAnomaly`` the largest of what the ranks found.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from trainwright.contract import DataError, UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One rank and its process group. ``local_rank`` counts within the node; ``group`` is None for the default."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = field(default=None, compare=False)

    @staticmethod
    def current() -> Ranks:
        """Return the ranks of torch.distributed if it is initialised; else one rank. Never imports torch."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return Ranks()
        rank = distributed.get_rank()
        return Ranks(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))

    def gather(self, value: T) -> list[T]:
        """Return every rank's (picklable) value, in the order of the ranks, on all ranks."""
        if self.world_size == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def sum(self, tensor: Tensor) -> None:
        """Sum the tensors of all ranks in place; they have equal shapes and are on the backend's device."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor, group=self.group)

    def max(self, tensor: Tensor) -> None:
        """Replace the elements by their largest value over all ranks, in place; like :meth:`sum`."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in the order of the ranks; shapes and types must be equal."""
        if self.world_size == 1:
            return [tensor]
        import torch.distributed

        received = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(received, tensor, group=self.group)
        return received

    def scatter(self, values: list[T] | None) -> T:
        """Return this rank's element of the (picklable) ``values``, which only the first rank passes."""
        if self.world_size == 1:
            assert values is not None
            return values[0]
        import torch.distributed

        received: list[Any] = [None]
        torch.distributed.scatter_object_list(received, values, group=self.group, group_src=0)
        return cast(T, received[0])

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.barrier(group=self.group)

    def apart(self) -> Ranks:
        """Return the same ranks with a separate process group, for collectives in a thread during training."""
        if self.world_size == 1:
            return self
        import torch.distributed

        return replace(self, group=torch.distributed.new_group(backend="gloo"))

    def agree(self, do: Callable[[], T]) -> list[T]:
        """Run ``do`` on every rank, and return all results on every rank; if it fails on one, raise on all.

        Otherwise a rank that cannot write would leave the others waiting in the next collective.
        """
        if self.world_size == 1:
            return [do()]
        result, error = None, None
        try:
            result = do()
        except Exception as caught:
            error = caught
        failure = None if error is None else (isinstance(error, DataError), isinstance(error, UserError), str(error))
        outcomes = self.gather((result, failure))
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(outcomes):
            if failure is not None:
                raise _as_error(rank, *failure)
        return [cast(T, value) for value, _ in outcomes]


def _as_error(rank: int, is_data_error: bool, is_user_error: bool, text: str) -> Exception:
    if is_user_error:
        return (DataError if is_data_error else UserError)(text)
    return RuntimeError(f"rank {rank} failed: {text}")
