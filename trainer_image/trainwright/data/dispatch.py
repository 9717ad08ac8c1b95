"""Rank 0 reads the data and deals the samples out; the others need no access to it.

Samples are dealt, not batches: each rank collates its own, so batches of different lengths need no common shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import chain, islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainwright.contract import DataError
from trainwright.data.loader import Loader, Reading, Stateful
from trainwright.data.samplers import Order, ShardedBatches, Sharding
from trainwright.data.streams import SeededDataset, SeededStream
from trainwright.distributed.ranks import Ranks

Round = list[list[Any]]
"""The samples of each rank."""


def keep_samples(samples: list[Any]) -> list[Any]:
    """The collator of rank 0's reader; a function with a name, so that data workers can be sent it."""
    return samples


def rounds_of(reader: Any, size: int, drop_last: bool, sharding: Sharding, first: list[Any]) -> Iterator[Round]:
    """Cut what rank 0 reads into rounds.

    Args:
        reader: Yields lists of samples: one for each rank, or with ``split_batches`` one for all.
        size: Samples that a rank gets in a round.
        drop_last: Leave out a last round that is not full.
        first: The samples of the first round, when the reader goes on after it; they fill up the last one.
    """
    batches, wanted = iter(reader), 1 if sharding.split_batches else sharding.world_size
    while taken := list(islice(batches, wanted)):
        samples = [sample for batch in taken for sample in batch]
        if drop_last and len(samples) < size * sharding.world_size:
            return
        first = first or samples
        yield _cut(samples, first, size, sharding)


def later(reader: Iterator[list[Any]], start: int, size: int, a_round: int) -> tuple[Iterator[list[Any]], list[Any]]:
    """Batches of ``size`` that begin after ``start`` samples; and the samples that a first round would have held."""
    samples = chain.from_iterable(reader)
    first = list(islice(samples, min(start, a_round)))
    rest = islice(samples, start - len(first), None)
    return iter(lambda: list(islice(rest, size)), []), first


def _cut(samples: list[Any], first: list[Any], size: int, sharding: Sharding) -> Round:
    """Equal shares, filled up from the first samples of all; or, not to be filled up, one batch after the other."""
    ranks = sharding.world_size
    if sharding.even_batches:
        size = -(-len(samples) // ranks)
        samples = samples + [first[i % len(first)] for i in range(size * ranks - len(samples))]
    return [samples[rank * size : (rank + 1) * size] for rank in range(ranks)]


def deal(rounds: Iterator[Round] | None, sharding: Sharding) -> Iterator[list[Any]]:
    """This rank's samples, one scatter a round; ``rounds`` is given on the process of rank 0 alone.

    A failure of the reader is dealt too, or the other ranks would wait for ever.
    """
    ranks = Ranks.current()
    while True:
        shares = None if rounds is None else _next_shares(rounds, sharding.world_size)
        copies = None if shares is None else [share for share in shares for _ in range(sharding.copies)]
        received = ranks.scatter(copies)
        if isinstance(received, Exception):
            raise received
        if received is None:
            return
        yield received


def _next_shares(rounds: Iterator[Round], ranks: int) -> list[Any]:
    try:
        return next(rounds, [None] * ranks)
    except Exception as error:
        kind = DataError if isinstance(error, DataError) else RuntimeError
        return [error if rank == 0 else kind(f"rank 0: {error}") for rank in range(ranks)]


class DispatchingLoader(Stateful, DataLoader[Any]):
    """The loader of one rank, whose data comes from rank 0.

    Args:
        order: Of a map-style dataset; None for a stream.
        batch_size: Samples a rank gets at a time; with ``split_batches``, what all ranks get.
        options: Of rank 0's reader: its workers and what belongs to them.

    Attributes:
        start: Samples that the next iteration leaves out, and that one alone.
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
        name: str = "dataset",
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, collate_fn=collate_fn)
        self._sharding, self._size, self._drop = sharding, batch_size, drop_last
        self._reader = _reader(dataset, order, batch_size, drop_last, seed, {**options, "name": name})
        self._reads = Ranks.current().rank == 0
        self._first: list[Any] = []
        self.start, self.reading = 0, Reading()

    @property
    def reader(self) -> Loader:
        """What rank 0 reads; the other ranks have it only for its length."""
        return self._reader

    def __len__(self) -> int:
        batches = len(self._reader)
        if self._sharding.split_batches:
            return batches
        ranks = self._sharding.world_size
        return batches // ranks if self._drop else -(-batches // ranks)

    @property
    def total_batch_size(self) -> int:
        """Samples in one round of batches, one from each rank."""
        return self._size if self._sharding.split_batches else self._size * self._sharding.world_size

    @property
    def total_dataset_length(self) -> int:
        """Samples that all ranks together read."""
        return len(cast(Sized, self.dataset))

    def set_epoch(self, epoch: int) -> None:
        self._reader.set_epoch(epoch)

    def load_stream(self, state: Any) -> None:
        """Put the stream back; its first round is read again, as the last one is filled up from it."""
        if self._reads:
            stream: Any = self.dataset
            self._first = list(islice(stream, self._size * self._sharding.world_size))
            stream.load_state_dict(state)

    def __iter__(self) -> Any:
        ranks, rounds = self._sharding.world_size, None
        first, self._first = self._first, []
        start, self.start = self.start, 0
        if self._reads:
            size = self._size // ranks if self._sharding.split_batches else self._size
            reader: Iterator[Any] = iter(self._reader)
            if start:
                reader, first = later(reader, start, self._size, self.total_batch_size)
            rounds = rounds_of(reader, size, self._drop, self._sharding, first)
        else:  # what opening the reader draws on rank 0, so that the ranks' generators stay alike
            torch.empty((), dtype=torch.int64).random_()
        return (self.collate_fn(samples) if samples else None for samples in deal(rounds, self._sharding))


def _reader(
    dataset: Any, order: Order | None, batch_size: int, drop_last: bool, seed: int, options: dict[str, Any]
) -> Loader:
    workers = options["num_workers"] > 0
    if isinstance(dataset, IterableDataset) or order is None:
        stream = SeededStream(dataset, batch_size, seed, rank=0) if workers else None
        return Loader(dataset, stream, batch_size=batch_size, drop_last=drop_last, collate_fn=keep_samples, **options)
    batches = ShardedBatches(order, batch_size, drop_last, Sharding(), numbered=workers)
    seen = SeededDataset(dataset, seed, rank=0) if workers else None
    return Loader(dataset, seen, batch_sampler=batches, collate_fn=keep_samples, **options)
