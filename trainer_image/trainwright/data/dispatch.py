"""Rank 0 reads the data and distributes the samples; the other ranks need no access to the data.

Rank 0 sends samples, not batches: each rank collates its samples, so batches can have different shapes.
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
    """Return the samples as they are; the collator of rank 0's reader, a named function so that it can be pickled."""
    return samples


def rounds_of(reader: Any, size: int, drop_last: bool, sharding: Sharding, first: list[Any]) -> Iterator[Round]:
    """Split the samples that rank 0 reads into rounds.

    Args:
        reader: Yields lists of samples: one for each rank, or with ``split_batches`` one for all.
        size: Samples that a rank gets in a round.
        drop_last: Drop the last round if it is not full.
        first: The samples of the first round, if the reader starts after it; they pad the last round.
    """
    batches, wanted = iter(reader), 1 if sharding.split_batches else sharding.world_size
    while taken := list(islice(batches, wanted)):
        samples = [sample for batch in taken for sample in batch]
        if drop_last and len(samples) < size * sharding.world_size:
            return
        first = first or samples
        yield _cut(samples, first, size, sharding)


def later(reader: Iterator[list[Any]], start: int, size: int, a_round: int) -> tuple[Iterator[list[Any]], list[Any]]:
    """Return batches of ``size`` that begin after ``start`` samples, and the samples of the first round."""
    samples = chain.from_iterable(reader)
    first = list(islice(samples, min(start, a_round)))
    rest = islice(samples, start - len(first), None)
    return iter(lambda: list(islice(rest, size)), []), first


def _cut(samples: list[Any], first: list[Any], size: int, sharding: Sharding) -> Round:
    """Split a round into equal shares padded with the first samples; or, without padding, into consecutive batches."""
    ranks = sharding.world_size
    if sharding.even_batches:
        size = -(-len(samples) // ranks)
        samples = samples + [first[i % len(first)] for i in range(size * ranks - len(samples))]
    return [samples[rank * size : (rank + 1) * size] for rank in range(ranks)]


def deal(rounds: Iterator[Round] | None, sharding: Sharding) -> Iterator[list[Any]]:
    """Yield this rank's samples, with one scatter per round; only rank 0 passes ``rounds``.

    An error of the reader is sent too, because otherwise the other ranks would wait forever.
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
    """The loader of one rank, with data from rank 0.

    Args:
        order: The order of a map-style dataset; None for a stream.
        batch_size: Samples per batch of a rank; with ``split_batches``, of all ranks together.
        options: Options of rank 0's reader, for example its workers.

    Attributes:
        start: Samples that only the next iteration skips.
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
        """The loader that rank 0 reads; the other ranks use only its length."""
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
        """Samples that all ranks read together."""
        return len(cast(Sized, self.dataset))

    def set_epoch(self, epoch: int) -> None:
        self._reader.set_epoch(epoch)

    def load_stream(self, state: Any) -> None:
        """Restore the stream; read its first round again, because it pads the last round."""
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
        else:  # draw the same number as rank 0's reader, to keep the generators equal
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
