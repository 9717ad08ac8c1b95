"""Rank 0 reads the data and deals the samples out; the others need no access to it.

Samples are dealt, not batches: each rank collates its own, so batches of different lengths need no common shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed
from torch.utils.data import DataLoader, IterableDataset

from trainwright.contract import DataError
from trainwright.sampling import Order, ShardedBatches, Sharding
from trainwright.streams import SeededDataset, SeededStream, set_epoch

Round = tuple[list[list[Any]], int] | None
"""The samples of each rank, and how many of all of them are real; None at the end."""


def keep_samples(samples: list[Any]) -> list[Any]:
    """The collator of rank 0's reader; a function with a name, so that data workers can be sent it."""
    return samples


class Dealer:
    """Iterates over this rank's samples, batch by batch.

    Args:
        reader: Yields lists of ``batch_size`` samples; used on rank 0 alone.
        drop_last: Leave out a last round that is not full.

    Attributes:
        real: How many samples of the last round, over all ranks, were there for the first time.
    """

    def __init__(self, reader: Any, batch_size: int, drop_last: bool, sharding: Sharding) -> None:
        self.real = 0
        self._size = batch_size // sharding.world_size if sharding.split_batches else batch_size
        self._drop_last = drop_last
        self._sharding = sharding
        self._rounds = self._deal(reader) if sharding.rank == 0 else None

    def __iter__(self) -> Iterator[list[Any]]:
        while (share := self._next()) is not None:
            samples, self.real = share
            yield samples

    def _next(self) -> tuple[list[Any], int] | None:
        """One scatter a round. A failure of the reader is dealt too, or the others would wait for ever."""
        shares: list[Any] | None = None
        if self._rounds is not None:
            shares = self._read_round()
        received: list[Any] = [None]
        torch.distributed.scatter_object_list(received, shares, src=0)
        if isinstance(received[0], Exception):
            raise received[0]
        share: tuple[list[Any], int] | None = received[0]
        return share

    def _read_round(self) -> list[Any]:
        ranks = self._sharding.world_size
        try:
            dealt: Round = next(self._rounds, None)  # type: ignore[arg-type]
        except Exception as error:
            kind = DataError if isinstance(error, DataError) else RuntimeError
            return [error if rank == 0 else kind(f"rank 0: {error}") for rank in range(ranks)]
        return [None] * ranks if dealt is None else [(samples, dealt[1]) for samples in dealt[0]]

    def _deal(self, reader: Any) -> Iterator[Round]:
        pending: list[list[Any]] = []
        first: list[Any] = []
        batches_a_round = 1 if self._sharding.split_batches else self._sharding.world_size
        for batch in reader:
            pending.append(batch)
            if len(pending) == batches_a_round:
                samples = [sample for part in pending for sample in part]
                first, pending = first or samples, []
                yield self._cut(samples, first)
        if pending and not self._drop_last:
            samples = [sample for part in pending for sample in part]
            yield self._cut(samples, first or samples)

    def _cut(self, samples: list[Any], first: list[Any]) -> Round:
        """Equal shares, filled up from the first samples of all; or, not to be filled up, one batch after the other."""
        ranks = self._sharding.world_size
        if not self._sharding.even_batches:
            size = self._size
            return [samples[rank * size : (rank + 1) * size] for rank in range(ranks)], len(samples)
        size = -(-len(samples) // ranks)
        filled = samples + [first[i % len(first)] for i in range(size * ranks - len(samples))]
        return [filled[rank * size : (rank + 1) * size] for rank in range(ranks)], len(samples)


class DispatchingLoader(DataLoader[Any]):
    """The loader of one rank, whose data comes from rank 0.

    Args:
        order: Of a map-style dataset; None for a stream.
        batch_size: Samples a rank gets at a time; with ``split_batches``, what all ranks get.
        options: Of rank 0's reader: its workers and what belongs to them.
    """

    def __init__(
        self,
        dataset: Any,
        order: Order | None,
        batch_size: int,
        drop_last: bool,
        seed: int,
        collate_fn: Any,
        sharding: Sharding,
        options: dict[str, Any],
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, collate_fn=collate_fn)
        self._sharding, self._size, self._drop = sharding, batch_size, drop_last
        self._reader = _reader(dataset, order, batch_size, drop_last, seed, options)
        self._dealer: Dealer | None = None

    @property
    def reader(self) -> DataLoader[Any]:
        """What rank 0 reads; the other ranks have it only for its length."""
        return self._reader

    def __len__(self) -> int:
        batches = len(self._reader)
        if self._sharding.split_batches:
            return batches
        ranks = self._sharding.world_size
        return batches // ranks if self._drop else -(-batches // ranks)

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self._reader.batch_sampler, ShardedBatches):
            self._reader.batch_sampler.epoch = epoch
        set_epoch(self._reader.dataset, epoch)

    def real_samples(self, number: int) -> int | None:
        """How many samples of the round last dealt are real; see :class:`trainwright.data.Loader`."""
        return self._dealer.real if self._dealer is not None else None

    def __iter__(self) -> Any:
        if self._sharding.rank == 0:
            source = iter(self._reader)
        else:  # what opening it draws on rank 0, so that the ranks' generators stay alike
            source = None
            torch.empty((), dtype=torch.int64).random_()
        self._dealer = Dealer(source, self._size, self._drop, self._sharding)
        return (self.collate_fn(samples) if samples else None for samples in self._dealer)


def _reader(
    dataset: Any, order: Order | None, batch_size: int, drop_last: bool, seed: int, options: dict[str, Any]
) -> DataLoader[Any]:
    workers = options["num_workers"] > 0
    if isinstance(dataset, IterableDataset) or order is None:
        seen = SeededStream(dataset, batch_size, seed, rank=0) if workers else dataset
        return DataLoader(seen, batch_size=batch_size, drop_last=drop_last, collate_fn=keep_samples, **options)
    batches = ShardedBatches(order, batch_size, drop_last, Sharding(), numbered=workers)
    seen = SeededDataset(dataset, seed, rank=0) if workers else dataset
    return DataLoader(seen, batch_sampler=batches, collate_fn=keep_samples, **options)
