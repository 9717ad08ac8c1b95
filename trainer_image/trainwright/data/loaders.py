"""Loaders of the batches of one rank, in the order of Hugging Face's Trainer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from trainwright.contract import DataError
from trainwright.data.collators import Collate, GuardedCollate, KeepColumns, default_collator_for, no_columns_left
from trainwright.data.dispatch import DispatchingLoader
from trainwright.data.loader import Loader
from trainwright.data.rebalance import RebalancedBatches
from trainwright.data.samplers import (
    FromSampler,
    LengthGrouped,
    Order,
    Sequential,
    ShardedBatches,
    Sharding,
    Shuffled,
    lengths_of,
    unseeded,
)
from trainwright.data.streams import SeededDataset, SeededStream, share_of_stream

logger = logging.getLogger(__name__)


def has_length(dataset: Any) -> bool:
    try:
        return len(dataset) is not None
    except (TypeError, AttributeError, NotImplementedError):
        return False


# -- columns


def signature_columns(model: Any, label_names: Sequence[str]) -> list[str]:
    """Return the parameters of ``model.forward`` under adapters and wrappers, and the columns that become labels."""
    inspected = getattr(model, "_orig_mod", model)  # the module inside torch.compile
    inspected = inspected.get_base_model() if hasattr(inspected, "get_base_model") else inspected
    return [*inspect.signature(inspected.forward).parameters, "label", "label_ids", *label_names]


def keep_used_columns(
    dataset: Any, collate_fn: Collate, columns: Sequence[str], *, description: str, model_name: str
) -> tuple[Any, Collate]:
    """Drop the columns that the model does not take: from a ``datasets.Dataset`` at once, else in the collator.

    Raises:
        DataError: No column would be left.
    """
    names = getattr(dataset, "column_names", None)
    if isinstance(dataset, IterableDataset) or not names or not hasattr(dataset, "remove_columns"):
        return dataset, KeepColumns(collate_fn, columns, model_name)
    unused = [name for name in names if name not in columns]
    if len(unused) == len(names):
        raise no_columns_left(names, columns, model_name)
    if unused:
        logger.info("%s: columns that %s.forward does not take are left out: %s", description, model_name, unused)
        dataset = dataset.remove_columns(unused)
    return dataset, collate_fn


# -- loaders


def train_loader(
    dataset: Any,
    *,
    args: Any,
    batch_size: int,
    collate_fn: Collate,
    rank: int,
    world_size: int,
    copies: int = 1,
    lengths: Sequence[int] | None = None,
    sampler: Any = None,
    input_name: str = "input_ids",
    name: str = "train_dataset",
) -> DataLoader[Any]:
    """The training batches of one rank, of ``batch_size`` samples each.

    Args:
        dataset: Map-style or iterable; any object with ``__getitem__`` and ``__len__`` works, for example a list.
        lengths: Lengths of the samples, for ``train_sampling_strategy: group_by_length``; by default the column
            ``length_column_name``, or the measured length of each sample's ``input_name``.
        sampler: A torch sampler that replaces the sampling strategy.
        name: The dataset's name in messages.

    Raises:
        DataError: The dataset is empty, yields no batch, or has no length and ``max_steps`` is not set.
    """
    sharding, drop_last = Sharding.of(args, rank, world_size, copies), args.dataloader_drop_last
    if isinstance(dataset, IterableDataset):
        if args.max_steps <= 0 and not has_length(dataset):
            raise DataError("max_steps: the train_dataset has no length, so set max_steps to say where training ends")
        return _loader(dataset, None, args, batch_size, collate_fn, sharding, drop_last, name)
    if _length_of(dataset, name) == 0:
        raise DataError(f"{name}: it is empty; give it samples")
    seed = args.data_seed if args.data_seed is not None else torch.initial_seed()
    if sampler is None and args.train_sampling_strategy == "batch_rebalance":
        lengths = lengths if lengths is not None else lengths_of(dataset, args.length_column_name, input_name, name)
        numbered = args.dataloader_num_workers > 0 and not sharding.dispatch_batches
        seed = args.data_seed if args.data_seed is not None else args.seed
        accumulation = args.gradient_accumulation_steps
        batches: ShardedBatches
        batches = RebalancedBatches(lengths, batch_size, accumulation, drop_last, sharding, seed, numbered)
        step = batch_size * accumulation * world_size
    else:
        order = _train_order(dataset, args, sharding, batch_size, lengths, sampler, input_name, seed)
        batches = _batches(order, args, batch_size, sharding, drop_last)
        step = batches.global_batch
    if drop_last and len(batches.order) < step:
        raise DataError(
            f"{name}: its {len(batches.order)} samples do not fill one batch of {step}, and dataloader_drop_last "
            "leaves out what is not full; set that to false or take a smaller batch"
        )
    return _loader(dataset, batches, args, batch_size, collate_fn, sharding, drop_last, name)


def eval_loader(
    dataset: Any,
    *,
    args: Any,
    batch_size: int,
    collate_fn: Collate,
    rank: int,
    world_size: int,
    copies: int = 1,
    lengths: Sequence[int] | None = None,
    sampler: Any = None,
    input_name: str = "input_ids",
    name: str = "eval_dataset",
) -> DataLoader[Any]:
    """The evaluation batches of one rank, in the dataset's order (by length when training groups by length).

    Each sample appears exactly once: ``dataloader_drop_last`` and ``even_batches`` apply only to training, so the last
    batch of a rank may be short or missing. Rank 0 reads streams, unless ``dispatch_batches`` is false, and sends None
    to ranks without a sample. An empty dataset has no batch.
    """
    sharding = replace(Sharding.of(args, rank, world_size, copies), even_batches=False)
    if isinstance(dataset, IterableDataset):
        return _loader(dataset, None, args, batch_size, collate_fn, sharding, False, name)
    length = _length_of(dataset, name)
    order: Order
    if sampler is not None:
        order = FromSampler(sampler)
    elif args.train_sampling_strategy == "group_by_length" and length:
        lengths = lengths if lengths is not None else lengths_of(dataset, args.length_column_name, input_name, name)
        seed = args.data_seed if args.data_seed is not None else args.seed
        order = LengthGrouped(lengths, batch_size, torch.Generator().manual_seed(seed))
    else:
        order = Sequential(length)
    batches = _batches(order, args, batch_size, sharding, drop_last=False)
    return _loader(dataset, batches, args, batch_size, collate_fn, sharding, False, name)


def _length_of(dataset: Any, name: str) -> int:
    if not has_length(dataset) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{name}: {type(dataset).__name__} is neither a map-style dataset (with __len__ and __getitem__) nor a "
            "torch IterableDataset; make it one of them"
        )
    return len(dataset)


def _train_order(
    dataset: Any,
    args: Any,
    sharding: Sharding,
    batch_size: int,
    lengths: Sequence[int] | None,
    sampler: Any,
    input_name: str,
    seed: int,
) -> Order:
    strategy = args.train_sampling_strategy
    if sampler is not None and not (_is_plain_shuffle(sampler) and sharding.use_seedable_sampler):
        return FromSampler(sampler)
    if sampler is None and strategy == "sequential":
        return Sequential(len(dataset))
    if sampler is None and strategy == "group_by_length":
        column = args.length_column_name
        lengths = lengths if lengths is not None else lengths_of(dataset, column, input_name, "train_dataset")
        return LengthGrouped(lengths, batch_size * args.gradient_accumulation_steps)
    if sharding.use_seedable_sampler:
        return Shuffled(len(dataset), seed)
    return unseeded(len(dataset), sharding.world_size)


def _is_plain_shuffle(sampler: Any) -> bool:
    return type(sampler) is RandomSampler and sampler.generator is None and not sampler.replacement


def _batches(order: Order, args: Any, batch_size: int, sharding: Sharding, drop_last: bool) -> ShardedBatches:
    numbered = args.dataloader_num_workers > 0 and not sharding.dispatch_batches
    return ShardedBatches(order, batch_size, drop_last, sharding, numbered)


def _loader(
    data: Any, batches: Any, args: Any, batch_size: int, collate_fn: Any, sharding: Sharding, drop_last: bool, name: str
) -> DataLoader[Any]:
    collate, options = GuardedCollate(collate_fn), _options(args)
    workers = options["num_workers"] > 0
    is_stream = batches is None
    dispatched = is_stream if sharding.dispatch_batches is None else sharding.dispatch_batches
    if dispatched and sharding.processes > 1:
        if isinstance(batches, RebalancedBatches):
            raise DataError(
                "train_sampling_strategy: batch_rebalance deals by cost, which accelerator_config.dispatch_batches "
                "would undo; leave one of them out"
            )
        order = None if is_stream else batches.order
        return DispatchingLoader(data, order, batch_size, drop_last, args.seed, collate, sharding, options, name)
    if not is_stream:
        seen = SeededDataset(data, args.seed, sharding.rank) if workers else None
        return Loader(data, seen, sharding, name, batch_sampler=batches, collate_fn=collate, **options)
    size = batch_size // sharding.world_size if sharding.split_batches else batch_size
    share = share_of_stream(data, size, drop_last, sharding)
    stream = SeededStream(share, size, args.seed, sharding.rank) if workers else None
    return Loader(share, stream, sharding, name, batch_size=size, drop_last=drop_last, collate_fn=collate, **options)


def _options(args: Any) -> dict[str, Any]:
    """Return the settings that are passed on to torch's loader; memory is pinned only for an accelerator."""
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


__all__ = [
    "default_collator_for",
    "eval_loader",
    "has_length",
    "keep_used_columns",
    "signature_columns",
    "train_loader",
]
