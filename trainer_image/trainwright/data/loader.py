"""torch's loader over a user's dataset; ``dataset`` is always the user's, also if data workers read a wrapper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainwright.data.samplers import ShardedBatches, Sharding
from trainwright.data.streams import StreamShard, set_epoch
from trainwright.data.workers import context_of
from trainwright.devices.seeding import RNGState


@dataclass
class Position:
    """The position in the current epoch, and the state of the generators when its order was drawn.

    ``left_out`` counts skipped samples before the first batch that the batches in ``read`` do not cover.
    """

    epoch: int
    read: int
    rng: RNGState
    generator: torch.Tensor | None
    grouping: int | None = None
    left_out: int = 0
    ended: bool = False


@dataclass
class Reading:
    """The position of a loader, and the saved state that its next epoch resumes from."""

    position: Position | None = None
    resumed: dict[str, Any] | None = None
    saver: Callable[[Any, Reading], dict[str, Any] | None] | None = None
    """Makes the state of a loader whose epochs are read. It holds no loader: a cycle would keep its workers alive."""


class Stateful:
    """The state of our loaders, with the protocol of torchdata's StatefulDataLoader.

    It counts only reads through :mod:`trainwright.data.epochs`, which the Trainer uses.
    """

    reading: Reading

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.reading.saver is None else self.reading.saver(self, self.reading)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reading.resumed = state


class Loader(Stateful, DataLoader[Any]):
    """The loader of one rank.

    Args:
        dataset: The user's dataset, or this rank's share of it.
        seen: The wrapper of the dataset that data workers read; None without data workers.
        name: The dataset's name in messages.
        options: Options of torch's loader.

    Attributes:
        data_size: Number of ranks that read different samples.
        start: Samples of a stream that only the next iteration skips.
    """

    def __init__(
        self,
        dataset: Any,
        seen: Dataset[Any] | None = None,
        sharding: Sharding | None = None,
        name: str = "dataset",
        **options: Any,
    ) -> None:
        if options.get("num_workers"):
            options["multiprocessing_context"] = context_of(options["multiprocessing_context"], name)
        super().__init__(dataset, **options)
        self._seen, self.start, self.reading = seen, 0, Reading()
        self.data_size = sharding.world_size if sharding is not None else 1

    @property
    def total_batch_size(self) -> int:
        """Samples in one round of batches, one from each rank."""
        if isinstance(self.batch_sampler, ShardedBatches):
            return self.batch_sampler.global_batch
        return (self.batch_size or 1) * self.data_size

    @property
    def total_dataset_length(self) -> int:
        """Samples that all ranks read together."""
        return len(self.dataset.dataset if isinstance(self.dataset, StreamShard) else self.dataset)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, ShardedBatches):
            self.batch_sampler.epoch = epoch
        set_epoch(self.dataset if self._seen is None else self._seen, epoch)

    def _get_iterator(self) -> Any:
        start, self.start = self.start, 0
        seen = _Later(self.dataset, start) if start else self._seen
        if self.num_workers == 0:
            return DataLoader._get_iterator(self if seen is None else _Seen(self, seen))  # type: ignore[arg-type]
        read, context = self.dataset if seen is None else seen, self.multiprocessing_context
        context.begin([read, self.collate_fn])
        try:
            return DataLoader._get_iterator(_Seen(self, read))  # type: ignore[arg-type]
        finally:
            context.end()


class _Seen:
    """A view of a loader with the dataset that its data workers read, for torch's iterator."""

    def __init__(self, loader: Loader, dataset: Any) -> None:
        self._loader, self.dataset = loader, dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Later(IterableDataset[Any]):
    """A stream without its first samples."""

    def __init__(self, dataset: Any, start: int) -> None:
        self._dataset, self._start = dataset, start

    def __iter__(self) -> Any:
        return islice(self._dataset, self._start, None)
