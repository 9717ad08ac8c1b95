"""The position in an epoch, counted in samples, so that a run can resume with another batch size or number of ranks.

If the batch size is the same, whole batches are skipped without reading samples. If it differs, the run starts at a
sample that may be in the middle of one of its batches.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from trainwright.data.dispatch import DispatchingLoader
from trainwright.data.loader import Loader
from trainwright.data.samplers import FromSampler, LengthGrouped, ShardedBatches
from trainwright.data.streams import StreamShard
from trainwright.distributed.ranks import Ranks


def samples_a_round(loader: Any, data_size: int | None = None) -> int | None:
    """Return the samples of one batch of each of ``data_size`` ranks (default: all); None if that is unknown."""
    total = getattr(loader, "total_batch_size", None)
    if isinstance(total, int):
        return total
    own = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return own * (data_size or Ranks.current().world_size) if isinstance(own, int) else None


def order_of(loader: Any) -> Any:
    """Return the order of a map-style dataset's samples, if the loader is ours."""
    reader = loader.reader if isinstance(loader, DispatchingLoader) else loader
    return getattr(getattr(reader, "batch_sampler", None), "order", None)


def grouping_of(loader: Any) -> int | None:
    """Return the batch size that an order by length depends on."""
    order = order_of(loader)
    return order.batch_size if isinstance(order, LengthGrouped) else None


def group_once(loader: Any, batch_size: int | None) -> None:
    """Draw the next order by length with the given batch size of an earlier run."""
    order = order_of(loader)
    if isinstance(order, LengthGrouped):
        order.once = batch_size


def can_start_within(loader: Any) -> bool:
    """Whether the loader can start at any sample, not only at a batch boundary."""
    if isinstance(loader, DispatchingLoader):
        return loader.reader.num_workers == 0
    if not isinstance(loader, Loader):
        return False
    return isinstance(loader.batch_sampler, ShardedBatches) or loader.num_workers == 0


def start_within(loader: Any, samples: int) -> None:
    """Make the next iteration skip the first ``samples`` of the epoch, counted over all ranks."""
    if isinstance(loader, DispatchingLoader):
        loader.start = samples
    elif isinstance(loader.batch_sampler, ShardedBatches):
        loader.batch_sampler.start = samples
    elif isinstance(loader.dataset, StreamShard):
        loader.dataset.start = samples
    else:  # each rank reads its own shards, equally far
        loader.start = samples * (loader.batch_size or 1) // (samples_a_round(loader) or 1)


def has_own_shards(loader: Any) -> bool:
    """Whether each rank reads its own part of a stream; the state of one rank is then invalid for another."""
    dataset = getattr(loader, "dataset", None)
    is_share = isinstance(dataset, IterableDataset) and not isinstance(dataset, StreamShard)
    return is_share and isinstance(loader, Loader) and loader.data_size > 1


def draws_alike(loader: Any, generator: Any) -> bool:
    """Whether the saved order came from the same kind of generator: shared by several ranks, or the default of one."""
    order = order_of(loader)
    return not isinstance(order, FromSampler) or (order.generator is None) == (generator is None)
