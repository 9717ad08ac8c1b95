"""The processes that train together, and every collective of the package: sums, gathered values, errors, a barrier.

Each call costs a collective. Within a step there is one alone: the sum of the targets that a loss is averaged over.
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
    """One rank's view of the world. ``local_rank`` counts within the node; ``group`` is None for the default one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = field(default=None, compare=False)

    @staticmethod
    def current() -> Ranks:
        """What torch.distributed says when it is initialised; else this process alone. Never imports torch."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return Ranks()
        rank = distributed.get_rank()
        return Ranks(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))

    def gather(self, value: T) -> list[T]:
        """Every rank's (picklable) value, in the order of the ranks, on all of them."""
        if self.world_size == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def sum(self, tensor: Tensor) -> None:
        """Add the tensors of all ranks, of one shape and on the device that the ranks talk through, in place."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor, group=self.group)

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, of one shape and type, in the order of the ranks."""
        if self.world_size == 1:
            return [tensor]
        import torch.distributed

        received = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(received, tensor, group=self.group)
        return received

    def scatter(self, values: list[T] | None) -> T:
        """This rank's one of the (picklable) ``values``, which the first rank alone passes."""
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
        """The same ranks with a group of their own, whose collectives meet no others: for a thread beside training."""
        if self.world_size == 1:
            return self
        import torch.distributed

        return replace(self, group=torch.distributed.new_group(backend="gloo"))

    def agree(self, do: Callable[[], T]) -> list[T]:
        """Run ``do`` on every rank, and give every rank all results: or fail on all of them when it fails on one.

        Without this a rank that cannot write would leave the others waiting for it in the next collective.
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
