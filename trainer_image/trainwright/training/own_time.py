"""Which rank the others wait for: each rank's own time in a step, compared when the ranks log together anyway.

Its own time is what a rank spends on its batches and its forward passes. Exchanging gradients is left out, because
there the fast ranks wait for the slow one. On an accelerator, forward passes are the host's part of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import torch

from trainwright.distributed.ranks import Ranks

LEAST_STEPS = 20
"""Steps between two comparisons, at least."""
SLOW = 1.3
"""Times the median of all ranks: a rank is slow from here on."""
NO_LONGER_SLOW = 1.15
LEAST_SHARE = 0.05
"""Of the time of a step: smaller differences between ranks do not matter."""


class OwnTime:
    """Measures one rank, for one call of ``train``."""

    def __init__(self, ranks: Ranks, device: torch.device, step: int) -> None:
        self._ranks, self._device = ranks, device
        self._step, self._since, self._slow = step, perf_counter(), -1
        self.seconds = 0.0

    @staticmethod
    def of(ranks: Ranks, device: torch.device, step: int) -> OwnTime | None:
        """None for one rank, which waits for nobody, and where a look at values costs a compilation."""
        return OwnTime(ranks, device, step) if ranks.world_size > 1 and device.type in ("cpu", "cuda") else None

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each one is there is this rank's own."""
        while True:
            began = perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.seconds += perf_counter() - began
            yield batch

    def compare(self, step: int) -> dict[str, float] | None:
        """The slowest rank as :attr:`trainwright.contract.Progress.slowest`, empty if none is slow; a collective.

        None without a collective if there were fewer than :data:`LEAST_STEPS` steps since the last comparison.
        """
        steps, now = step - self._step, perf_counter()
        if steps < LEAST_STEPS:
            return None
        own = torch.zeros(self._ranks.world_size, dtype=torch.float32)
        own[self._ranks.rank] = self.seconds / steps
        own = own.to(self._device)
        self._ranks.sum(own)  # the collective of the logs, which every backend has
        times = own.tolist()
        whole = (now - self._since) / steps
        self._step, self._since, self.seconds = step, now, 0.0
        found = slowest(times, whole, self._slow)
        self._slow = int(found["rank"]) if found else -1
        return {**found, "step": step} if found else {}


def slowest(times: list[float], step_seconds: float, before: int = -1) -> dict[str, float]:
    """The slowest rank, and how many times the median of the others' own time it takes; empty if none is slow.

    ``before`` is the rank that was slow, and stays so until it is clearly no longer.
    """
    rank = max(range(len(times)), key=times.__getitem__)
    usual = median(times[:rank] + times[rank + 1 :])
    limit = NO_LONGER_SLOW if rank == before else SLOW
    if times[rank] < limit * usual or times[rank] - usual < LEAST_SHARE * step_seconds:
        return {}
    return {"rank": rank, "factor": round(min(times[rank] / max(usual, 1e-6), 1000.0), 2)}
