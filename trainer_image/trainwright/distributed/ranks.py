"""The processes that train together, for what they agree on between steps: plain objects, errors, a barrier.

Costs a collective for each call, so nothing here is used within a step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from trainwright.contract import DataError, UserError

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
