"""How far an epoch is read, counted in samples: what a run whose batches or ranks are others can go on from.

Batches that are as large as before are counted instead, and skipped without a sample being read. A run that cuts the
same order into other batches begins at a sample, in the middle of what would have been one of its batches.
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
    """Samples of one batch of every rank that reads its own, by default of all; None where the loader does not say."""
    total = getattr(loader, "total_batch_size", None)
    if isinstance(total, int):
        return total
    own = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return own * (data_size or Ranks.current().world_size) if isinstance(own, int) else None


def order_of(loader: Any) -> Any:
    """The order of a map-style dataset's samples, where the loader is one of ours."""
    reader = loader.reader if isinstance(loader, DispatchingLoader) else loader
    return getattr(getattr(reader, "batch_sampler", None), "order", None)


def grouping_of(loader: Any) -> int | None:
    """The batch size that an order by length depends on."""
    order = order_of(loader)
    return order.batch_size if isinstance(order, LengthGrouped) else None


def group_once(loader: Any, batch_size: int | None) -> None:
    """Draw the next order by length as a run with another batch size drew it."""
    order = order_of(loader)
    if isinstance(order, LengthGrouped):
        order.once = batch_size


def can_start_within(loader: Any) -> bool:
    """Whether the loader can begin at any sample; others begin with a batch."""
    if isinstance(loader, DispatchingLoader):
        return loader.reader.num_workers == 0
    if not isinstance(loader, Loader):
        return False
    return isinstance(loader.batch_sampler, ShardedBatches) or loader.num_workers == 0


def start_within(loader: Any, samples: int) -> None:
    """The next iteration leaves out the first ``samples`` of the epoch, counted over all ranks."""
    if isinstance(loader, DispatchingLoader):
        loader.start = samples
    elif isinstance(loader.batch_sampler, ShardedBatches):
        loader.batch_sampler.start = samples
    elif isinstance(loader.dataset, StreamShard):
        loader.dataset.start = samples
    else:  # each rank reads shards of its own, alike
        loader.start = samples * (loader.batch_size or 1) // (samples_a_round(loader) or 1)


def has_own_shards(loader: Any) -> bool:
    """Whether each rank reads a part of a stream that no other rank reads; its state means nothing elsewhere."""
    dataset = getattr(loader, "dataset", None)
    is_share = isinstance(dataset, IterableDataset) and not isinstance(dataset, StreamShard)
    return is_share and isinstance(loader, Loader) and loader.data_size > 1


def draws_alike(loader: Any, generator: Any) -> bool:
    """Whether an order is drawn where a saved one was: several ranks share a generator, one alone has the default."""
    order = order_of(loader)
    return not isinstance(order, FromSampler) or (order.generator is None) == (generator is None)
