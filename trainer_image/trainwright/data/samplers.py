"""Which samples make up which batch: the order of an epoch, and how the ranks share it.

Both match Hugging Face's Trainer with accelerate: the order is drawn once an epoch, cut into batches, and distributed
round-robin over the ranks. If the last round leaves a rank without samples, it reuses the first samples of the epoch.

The module also has the torch sampler ``LengthGroupedSampler`` under Hugging Face's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import RandomSampler, Sampler

from trainwright.contract import DataError
from trainwright.distributed.ranks import Ranks

Indices = Sequence[int] | torch.Tensor


@dataclass(frozen=True)
class Sharding:
    """How batches are distributed over the data ranks; the four fields in the middle are from ``accelerator_config``.

    ``copies`` processes have the same data rank, and read the same samples.
    """

    rank: int = 0
    world_size: int = 1
    split_batches: bool = False
    even_batches: bool = True
    dispatch_batches: bool | None = None
    use_seedable_sampler: bool = True
    copies: int = 1

    @staticmethod
    def of(args: Any, rank: int, world_size: int, copies: int = 1) -> Sharding:
        config = args.accelerator_config
        names = ("split_batches", "even_batches", "dispatch_batches", "use_seedable_sampler")
        given = {name: getattr(config, name) for name in names} if config else {}
        return Sharding(rank, world_size, copies=copies, **given)

    @property
    def processes(self) -> int:
        return self.world_size * self.copies


class Order(Protocol):
    """The order of one epoch's samples.

    Attributes:
        draws_from_default: Whether it uses torch's default generator, whose state must then be equal on all ranks.
    """

    draws_from_default: bool

    def __len__(self) -> int: ...

    def indices(self, epoch: int) -> Indices:
        """Return the order of ``epoch``; called once an epoch on every rank, with the same result."""
        ...


class Sequential:
    """The order of the dataset."""

    draws_from_default = False

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def indices(self, epoch: int) -> Indices:
        return range(self._length)


class Shuffled:
    """A permutation that depends only on seed and epoch. It is a tensor: a list of a billion integers takes 36 GB."""

    draws_from_default = False

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def indices(self, epoch: int) -> Indices:
        return torch.randperm(self._length, generator=torch.Generator().manual_seed(self._seed + epoch))


class FromSampler:
    """The order of any torch sampler, for example a user's."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.draws_from_default = hasattr(sampler, "generator") and sampler.generator is None

    def __len__(self) -> int:
        return len(self.sampler)

    def indices(self, epoch: int) -> Indices:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        return list(self.sampler)

    @property
    def generator(self) -> torch.Generator | None:
        """The sampler's generator, whose state continues from epoch to epoch."""
        generator = getattr(self.sampler, "generator", None)
        return generator if isinstance(generator, torch.Generator) else None


class LengthGrouped:
    """A random order in which neighbours have similar lengths, which saves padding.

    The longest sample comes first, so that an out-of-memory error appears in the first step.

    Args:
        lengths: One per sample.
        batch_size: Samples of one optimizer step on a rank.
        generator: The generator of the permutation; None for torch's default generator.

    Attributes:
        once: The batch size for the next order only: that of the interrupted run, if it differs.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None) -> None:
        self._lengths = lengths
        self.batch_size = batch_size
        self.once: int | None = None
        self._generator = generator
        self.draws_from_default = generator is None

    def __len__(self) -> int:
        return len(self._lengths)

    def indices(self, epoch: int) -> Indices:
        lengths = self._lengths
        batch_size, self.once = self.once or self.batch_size, None
        shuffled = torch.randperm(len(lengths), generator=self._generator).tolist()
        size = batch_size * max(1, min(len(lengths) // (batch_size * 4), 50))
        groups = [
            sorted(shuffled[start : start + size], key=lengths.__getitem__, reverse=True)
            for start in range(0, len(lengths), size)
        ]
        longest = max(range(len(groups)), key=lambda group: lengths[groups[group][0]])
        groups[0][0], groups[longest][0] = groups[longest][0], groups[0][0]
        return [index for group in groups for index in group]


def column_lengths(dataset: Any, args: Any) -> list[int] | None:
    """Return the lengths in ``length_column_name``; call this before that column is dropped as unused."""
    is_there = args.length_column_name in (getattr(dataset, "column_names", None) or ())
    wanted = args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    return lengths_of(dataset, args.length_column_name) if is_there and wanted and hasattr(dataset, "__len__") else None


def lengths_of(dataset: Any, column: str, input_name: str = "input_ids", name: str = "dataset") -> list[int]:
    """Return the length of every sample: from a column, or measured on each sample's ``input_name``."""
    if column in (getattr(dataset, "column_names", None) or ()):
        return [int(length) for length in dataset[column]]
    check_lengths(dataset, column, input_name, name)
    return [len(dataset[index][input_name]) for index in range(len(dataset))]


def check_lengths(dataset: Any, column: str, input_name: str, name: str) -> None:
    """Raises :class:`DataError` if :func:`lengths_of` would find nothing to measure."""
    if column in (getattr(dataset, "column_names", None) or ()):
        return
    first = dataset[0]
    if not isinstance(first, Mapping) or input_name not in first:
        keys = ", ".join(map(str, first)) if isinstance(first, Mapping) else type(first).__name__
        raise DataError(
            f"length_column_name: the {name} has no column {column!r}, and its samples ({keys}) no {input_name!r} to "
            "measure; add the column or choose another train_sampling_strategy"
        )


class NumberedBatch(list[int]):
    """Indices with the number of their batch, which seeds a data worker."""

    epoch: int
    number: int


class ShardedBatches(Sampler[list[int]]):
    """The batches of one rank: lists of indices.

    Attributes:
        epoch: The epoch of the next iteration.
        start: Samples to skip at the start of the next iteration only, counted over all ranks.
    """

    def __init__(self, order: Order, batch_size: int, drop_last: bool, sharding: Sharding, numbered: bool = False):
        if sharding.split_batches and batch_size % sharding.world_size:
            raise DataError(
                f"accelerator_config.split_batches: a batch of {batch_size} does not split among "
                f"{sharding.world_size} processes; take a multiple of it as batch size"
            )
        self.order = order
        self.batch_size = batch_size // sharding.world_size if sharding.split_batches else batch_size
        self.drop_last = drop_last
        self.sharding = sharding
        self.epoch = 0
        self.start = 0
        self._numbered = numbered
        self._drawn: Indices | None = None

    @property
    def global_batch(self) -> int:
        """Samples in one round of batches, one from each rank."""
        return self.batch_size * self.sharding.world_size

    def __len__(self) -> int:
        return self.batches_of(len(self.order))

    def batches_of(self, samples: int) -> int:
        """Return the number of batches that this rank makes of the next ``samples``."""
        rounds, rest = divmod(max(0, samples), self.global_batch)
        if self.drop_last:
            return rounds
        if self.sharding.even_batches or self.sharding.world_size == 1:
            return rounds + (rest > 0)
        return rounds + (rest > self.sharding.rank * self.batch_size)

    def samples_in(self, number: int) -> int:
        """Return the number of samples in this rank's batch ``number``, without padding by repeated samples."""
        start = number * self.global_batch + self.sharding.rank * self.batch_size
        return max(0, min(self.batch_size, len(self.order) - start))

    def draw(self) -> None:
        """Draw the order of the next iteration now, while the generators have the right state."""
        if self.order.draws_from_default and self.sharding.processes > 1:
            torch.set_rng_state(Ranks.current().gather(torch.get_rng_state())[0])
        self._drawn = self.order.indices(self.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        if self._drawn is None:
            self.draw()
        indices, self._drawn = self._drawn, None
        start, self.start = self.start, 0
        epoch, stride, offset = self.epoch, self.global_batch, self.sharding.rank * self.batch_size
        for number in range(self.batches_of(len(self.order) - start)):
            batch = self._share(indices, start + number * stride + offset)
            yield self._number(batch, epoch, start // stride + number) if self._numbered else batch
        self.epoch = epoch + 1

    def _share(self, indices: Any, start: int) -> list[int]:
        batch = _to_list(indices[start : start + self.batch_size])
        if self.sharding.even_batches and self.sharding.world_size > 1:
            wanting = range(start + len(batch), start + self.batch_size)
            batch += [int(indices[position % len(indices)]) for position in wanting]
        return batch

    def _number(self, batch: list[int], epoch: int, number: int) -> NumberedBatch:
        numbered = NumberedBatch(batch)
        numbered.epoch, numbered.number = epoch, number
        return numbered


def _to_list(indices: Any) -> list[int]:
    result: list[int] = indices.tolist() if isinstance(indices, torch.Tensor) else list(indices)
    return result


def unseeded(length: int, world_size: int) -> FromSampler:
    """Return a shuffle that draws from the run's generator, for ``use_seedable_sampler: false``."""
    if world_size == 1:
        return FromSampler(RandomSampler(range(length)))
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    return FromSampler(RandomSampler(range(length), generator=torch.Generator().manual_seed(seed)))


class LengthGroupedSampler(Sampler[int]):
    """A random order in which neighbours have similar lengths; see :class:`trainwright.data.samplers.LengthGrouped`.

    Args:
        batch_size: Samples of one optimizer step on a rank.
        dataset: Measured by each sample's ``model_input_name`` if ``lengths`` is None.
        lengths: One per sample.
        model_input_name: ``"input_ids"`` by default.
        generator: The generator of the permutation; None for torch's default generator.

    Raises:
        ValueError: Neither dataset nor lengths are given.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Any = None,
        lengths: Sequence[int] | torch.Tensor | None = None,
        model_input_name: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if dataset is None and lengths is None:
            raise ValueError("LengthGroupedSampler: give it the dataset or the lengths of its samples")
        if lengths is None:
            lengths = lengths_of(dataset, "", model_input_name or "input_ids")
        self.batch_size, self.generator = batch_size, generator
        self.lengths = lengths.tolist() if isinstance(lengths, torch.Tensor) else list(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(LengthGrouped(self.lengths, self.batch_size, self.generator).indices(epoch=0))
