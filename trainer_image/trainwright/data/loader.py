"""torch's loader over a user's dataset, which stays the loader's ``dataset`` whatever its data workers read."""

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
    """How far the epoch at work is read, and the generators as they stood when its order was drawn.

    ``left_out`` is what the samples before the first batch are more than the batches that stand for them in ``read``.
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
    """Where a loader stands, and the saved state that its next epoch goes on from."""

    position: Position | None = None
    resumed: dict[str, Any] | None = None
    state_dict: Callable[[], dict[str, Any] | None] | None = None
    """Of the epochs that are read, once there are any."""


class Stateful:
    """What our loaders say of themselves, by the protocol of torchdata's StatefulDataLoader.

    Counted is what is read through :mod:`trainwright.data.epochs`, as by the Trainer.
    """

    reading: Reading

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.reading.state_dict is None else self.reading.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reading.resumed = state


class Loader(Stateful, DataLoader[Any]):
    """The loader of one rank.

    Args:
        dataset: The user's, or this rank's share of it.
        seen: The same as data workers read it; None without data workers.
        name: Of the dataset, for messages.
        options: Those of torch's loader.

    Attributes:
        data_size: Ranks that read different samples.
        start: Samples of a stream that the next iteration leaves out, and that one alone.
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
        """Samples that all ranks together read."""
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
    """A loader, as torch makes the iterator of its data workers, with the dataset that they read."""

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
