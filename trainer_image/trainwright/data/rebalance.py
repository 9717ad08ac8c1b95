"""Batches of equal cost rather than of equal size: ``train_sampling_strategy: batch_rebalance``.

The samples of one optimizer step are sorted by length and split into one group for each micro-batch of each rank. The
split moves one sample at a time from the most expensive group to the cheapest, until the costs are as even as possible.
The most expensive groups become the first micro-batches of the ranks, the next ones the second, and so on, so that
ranks wait little for each other. All ranks compute the same split without communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import cast

import torch

from trainwright.data.samplers import Sequential, ShardedBatches, Sharding

QUADRATIC = 0.001
"""Weight of the squared length (attention) relative to the length."""


class RebalancedBatches(ShardedBatches):
    """The micro-batches of one rank, ``accumulation`` of them for each optimizer step.

    Args:
        lengths: Lengths of all samples, in tokens.
        batch_size: Average number of samples per micro-batch.
        drop_last: Drop the last samples if they do not fill a step.
        seed: Determines the order, together with the epoch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int,
        drop_last: bool,
        sharding: Sharding,
        seed: int = 42,
        numbered: bool = False,
    ) -> None:
        super().__init__(Sequential(len(lengths)), batch_size, drop_last, sharding, numbered)
        self._lengths = lengths
        self._accumulation = accumulation
        self._groups = accumulation * sharding.world_size
        self._step_size = batch_size * self._groups
        self._seed = seed

    def batches_of(self, samples: int) -> int:
        whole, rest = divmod(max(0, samples), self._step_size)
        return (whole + (rest > 0 and not self.drop_last)) * self._accumulation

    def draw(self) -> None:
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        self._drawn = torch.randperm(len(self._lengths), generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        if self._drawn is None:
            self.draw()
        order, self._drawn = cast(list[int], self._drawn), None
        start, self.start = self.start, 0
        epoch, rank, first = self.epoch, self.sharding.rank, start // self.global_batch
        for number in range(self.batches_of(len(order) - start)):
            step, slot = divmod(number, self._accumulation)
            if slot == 0:
                groups = self._groups_of(self._samples_of(order, start + step * self._step_size))
            batch = groups[slot * self.sharding.world_size + rank]
            yield self._number(batch, epoch, first + number) if self._numbered else batch
        self.epoch = epoch + 1

    def _samples_of(self, order: list[int], start: int) -> list[int]:
        """Return the samples of one step; if they are fewer than groups, add samples from the start of the epoch."""
        samples = order[start : start + self._step_size]
        return samples + [order[i % len(order)] for i in range(self._groups - len(samples))]

    def _groups_of(self, samples: list[int]) -> list[list[int]]:
        """Return the groups of one step, most expensive first."""
        samples = sorted(samples, key=self._lengths.__getitem__, reverse=True)
        lengths = [self._lengths[sample] for sample in samples]
        counts = Cuts(lengths, self._groups, self.sharding.world_size, self._step_size).balanced()
        starts = [0, *accumulate(counts)]
        groups = [
            (samples[start : start + count], _cost(count, lengths[start]))
            for start, count in zip(starts, counts, strict=False)
        ]
        return [group for group, _ in sorted(groups, key=lambda group: group[1], reverse=True)]


def _cost(samples: int, longest: int) -> float:
    """Return the cost of a batch whose samples are padded to the longest."""
    return samples * longest + QUADRATIC * samples * longest * longest


class Cuts:
    """The split of one step's samples, sorted from longest to shortest, into groups.

    A *slot* is the set of groups that the ranks process at the same time. A most expensive group with one sample cannot
    become cheaper: its slot is then filled up to this cost and frozen, and the search continues with the other slots.
    """

    def __init__(self, lengths: list[int], groups: int, slot_size: int, patience: int) -> None:
        self._lengths = lengths
        self._slot_size = slot_size
        self._rounds = max(groups * 30, patience)
        even, rest = divmod(len(lengths), groups)
        self.counts = [even + (group < rest) for group in range(groups)]
        self._frozen: set[int] = set()

    def costs(self) -> list[float]:
        starts = [0, *accumulate(self.counts)]
        return [_cost(count, self._lengths[start]) for start, count in zip(starts, self.counts, strict=False)]

    def balanced(self) -> list[int]:
        """Return the most even counts that moving single samples finds, before the moves repeat."""
        best, smallest, seen = list(self.counts), float("inf"), set()
        for _ in range(self._rounds):
            active = [group for group in range(len(self.counts)) if group not in self._frozen]
            if tuple(self.counts) in seen or len(active) <= 1:
                break
            seen.add(tuple(self.counts))
            costs = self.costs()
            dearest, cheapest = max(active, key=costs.__getitem__), min(active, key=costs.__getitem__)
            spread = costs[dearest] - costs[cheapest]
            if spread < smallest:
                best, smallest = list(self.counts), spread
            if spread == 0:
                break
            if self.counts[dearest] > 1:
                self._move(dearest, cheapest)
            else:
                self._freeze_slot_of(dearest, costs)
        return best

    def _move(self, giver: int, taker: int) -> None:
        self.counts[giver] -= 1
        self.counts[taker] += 1

    def _freeze_slot_of(self, dearest: int, costs: list[float]) -> None:
        ranking = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
        start = ranking.index(dearest) // self._slot_size * self._slot_size
        slot = set(ranking[start : start + self._slot_size])
        for group in slot:
            if group not in self._frozen and group != dearest:
                self._fill(group, costs[dearest], slot)
        self._frozen |= slot

    def _fill(self, group: int, limit: float, slot: set[int]) -> None:
        """Move samples from cheaper groups of other slots to ``group``, while its cost is at most ``limit``."""
        while _cost(self.counts[group] + 1, self._lengths[sum(self.counts[:group])]) <= limit:
            costs = self.costs()
            givers = [g for g in range(len(costs)) if g not in self._frozen | slot and self.counts[g] > 1]
            if not givers:
                return
            self._move(min(givers, key=costs.__getitem__), group)
