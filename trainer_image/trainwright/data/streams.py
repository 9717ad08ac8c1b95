"""How ranks and data workers share iterable datasets, and how they draw random numbers.

A data worker seeds itself from (seed, epoch, batch, rank) before each batch. A batch is then the same in every worker,
in an uninterrupted run and as the first batch after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from trainwright.data.samplers import NumberedBatch, Sharding
from trainwright.devices.seeding import derived_seed, seed_everything


class SeededDataset(Dataset[Any]):
    """Wraps a map-style dataset for data workers, which fetch each batch with a separate seed."""

    def __init__(self, dataset: Any, seed: int, rank: int) -> None:
        self.dataset = dataset
        self._seed = seed
        self._rank = rank
        self._epoch = -1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getitems__(self, batch: NumberedBatch) -> list[Any]:
        self._enter_epoch(batch.epoch)
        seed_everything(derived_seed(self._seed, batch.epoch, batch.number, self._rank))
        if hasattr(self.dataset, "__getitems__"):
            items: list[Any] = self.dataset.__getitems__(list(batch))
            return items
        return [self.dataset[index] for index in batch]

    def _enter_epoch(self, epoch: int) -> None:
        """Set the epoch of the dataset's copy in a persistent worker."""
        if epoch != self._epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._epoch = epoch


class SeededStream(IterableDataset[Any]):
    """Wraps an iterable dataset for data workers; each reads its copy, with a new seed for each batch."""

    def __init__(self, dataset: Any, batch_size: int, seed: int, rank: int) -> None:
        self.dataset = dataset
        self.epoch = 0
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        set_epoch(self.dataset, epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        lane = (worker.id, worker.num_workers) if worker else (0, 1)
        source, read = None, 0
        while True:
            if read % self._batch_size == 0:
                number = lane[0] + read // self._batch_size * lane[1]
                seed_everything(derived_seed(self._seed, self.epoch, number, self._rank))
            source = source or iter(self.dataset)
            try:
                sample = next(source)
            except StopIteration:
                break
            yield sample
            read += 1
        self.set_epoch(self.epoch + 1)  # for persistent workers; others start with the loader's epoch


class StreamShard(IterableDataset[Any]):
    """Every rank reads the whole stream and keeps its share of each round of batches.

    Attributes:
        start: Samples of the stream that only the next iteration skips.
    """

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, sharding: Sharding) -> None:
        self.dataset = dataset
        self._size = batch_size
        self._round = batch_size * sharding.world_size
        self._start = batch_size * sharding.rank
        self._drop_last = drop_last
        self._filled = sharding.even_batches
        self._epoch = self.start = 0
        self._first: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        """Delegate other attributes to the user's dataset, because users read them through the loader."""
        if name == "dataset" or name.startswith("__"):  # not set while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        set_epoch(self.dataset, epoch)

    def __len__(self) -> int:
        rounds, rest = divmod(len(self.dataset), self._round)
        return (rounds + (rest > 0 and not self._drop_last)) * self._size

    def state_dict(self) -> Any:
        return self.dataset.state_dict() if has_state(self.dataset) else None

    def load_state_dict(self, state: Any) -> None:
        """Restore the stream; read its first round again, because it pads the last round."""
        if self._filled and not self._drop_last:
            self._first = list(islice(self.dataset, self._round))
        self.dataset.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:
        self._seed_own_generator()
        first, self._first = self._first, []
        source, start, self.start = iter(self.dataset), self.start, 0
        first = list(islice(source, min(start, self._round))) or first
        current: list[Any] = []
        for sample in islice(source, max(0, start - self._round), None):
            current.append(sample)
            if len(current) == self._round:
                first = first or current
                yield from current[self._start : self._start + self._size]
                current = []
        if current and not self._drop_last:
            first = first or list(current)
            if self._filled:
                current += [first[i % len(first)] for i in range(self._round - len(current))]
            yield from current[self._start : self._start + self._size]

    def _seed_own_generator(self) -> None:
        """Seed the dataset's generator, if it has one, so that it shuffles equally on every rank."""
        generator = getattr(self.dataset, "generator", None)
        if isinstance(generator, torch.Generator) and not hasattr(self.dataset, "set_epoch"):
            generator.manual_seed(self._epoch)


def set_epoch(dataset: Any, epoch: int) -> None:
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)


def has_state(dataset: Any) -> bool:
    """Whether a stream can be restored exactly.

    The streams of ``datasets`` do not save their shuffle buffer, so streams that shuffle are read again instead.
    """
    if not (hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")):
        return False
    if isinstance(dataset, StreamShard):
        return has_state(dataset.dataset)
    return not _has_shuffle_buffer(getattr(dataset, "_ex_iterable", None))


def _has_shuffle_buffer(iterable: Any) -> bool:
    if iterable is None:
        return False
    if type(iterable).__name__ == "BufferShuffledExamplesIterable":
        return True
    inner = [getattr(iterable, "ex_iterable", None), *(getattr(iterable, "ex_iterables", None) or ())]
    return any(_has_shuffle_buffer(part) for part in inner)


def share_of_stream(dataset: Any, batch_size: int, drop_last: bool, sharding: Sharding) -> Any:
    """Return this rank's part of a stream: separate shards if there are enough, else a :class:`StreamShard`."""
    if sharding.world_size == 1:
        return dataset
    has_own_shards = hasattr(dataset, "shard") and getattr(dataset, "num_shards", 0) >= sharding.world_size
    if has_own_shards and not sharding.split_batches:
        return dataset.shard(num_shards=sharding.world_size, index=sharding.rank)
    return StreamShard(dataset, batch_size, drop_last, sharding)
