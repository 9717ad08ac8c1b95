"""The batches of one rank: loaders that give the order of Hugging Face's Trainer, and resume in the middle of an epoch.

Randomness. The order of an epoch depends on seed and epoch (or, where the user asks for that, on torch's default
generator as it stood when the epoch began: its state is kept for a resume). Without data workers, datasets and
collators draw from the run's own generators, which a checkpoint holds, and no batch is fetched before it is wanted.
Data workers seed themselves for each batch (see :mod:`trainwright.data.streams`). Opening a fresh epoch draws one
number from the default generator, as torch's own loader does, so that dropout sees the same numbers as under Hugging
Face; opening one in the middle leaves every generator as it was.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from trainwright.contract import DataError
from trainwright.data.collators import Collate, GuardedCollate, KeepColumns, default_collator_for, no_columns_left
from trainwright.data.dispatch import DispatchingLoader
from trainwright.data.loader import Loader
from trainwright.data.place import group_once, grouping_of, has_own_shards, samples_a_round, start_within
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
from trainwright.data.streams import SeededDataset, SeededStream, has_state, set_epoch, share_of_stream
from trainwright.data.workers import watch_start
from trainwright.devices.seeding import RNGState, preserved_rng, rng_state, set_rng_state

logger = logging.getLogger(__name__)


def has_length(dataset: Any) -> bool:
    try:
        return len(dataset) is not None
    except (TypeError, AttributeError, NotImplementedError):
        return False


# -- columns


def signature_columns(model: Any, label_names: Sequence[str]) -> list[str]:
    """What ``model.forward`` takes by name, through adapters and wrappers, and what collators turn into labels."""
    inspected = getattr(model, "_orig_mod", model)  # of torch.compile
    inspected = inspected.get_base_model() if hasattr(inspected, "get_base_model") else inspected
    return [*inspect.signature(inspected.forward).parameters, "label", "label_ids", *label_names]


def keep_used_columns(
    dataset: Any, collate_fn: Collate, columns: Sequence[str], *, description: str, model_name: str
) -> tuple[Any, Collate]:
    """Drop what the model takes no argument for: from a ``datasets.Dataset`` at once, else while collating.

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
        dataset: Map-style or iterable; anything with ``__getitem__`` and ``__len__``, such as a list, will do.
        lengths: Of the samples, for ``train_sampling_strategy: group_by_length``; else the column
            ``length_column_name`` or each sample's ``input_name`` is measured.
        sampler: A torch sampler that takes the place of the strategy.
        name: Of the dataset, for messages.

    Raises:
        DataError: The dataset is empty, gives no batch, or has no length while ``max_steps`` is not set.
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

    Every sample is there, and none twice, whatever ``dataloader_drop_last`` and ``even_batches`` say of training: the
    last batch of a rank may be short or missing. Rank 0 reads streams, unless ``dispatch_batches`` is false, and deals
    None to ranks that it has no sample for. An empty dataset has no batch.
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
    """The settings that go to torch's loader as they are; memory is pinned only for an accelerator."""
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


# -- epochs


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


_positions: WeakKeyDictionary[Any, Position] = WeakKeyDictionary()
_resumed: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def batches(loader: Any, *, epoch: int, skip: int = 0) -> Iterator[Any]:
    """Open an epoch: an iterator over its batches, ``skip`` of them left out.

    The order is drawn before this returns. Our loaders skip without reading the data; streams go on from their saved
    state where they have one; anything else is read and thrown away. A saved state with a ``start`` says at which
    sample to begin, where that is not the first of a batch; ``skip`` then says how many batches that stands for.

    Raises:
        DataError: While iterating: a collator failed, or a first epoch has no batch at all.
    """
    _set_loader_epoch(loader, epoch)
    watch_start(loader, "train_dataset")
    saved = _resumed.pop(loader, None)
    if skip or (saved and saved.get("start")):
        with preserved_rng():
            position, iterator = _open_within(loader, epoch, skip, saved)
    else:
        _restore_generator(loader, saved and saved["generator_now"])
        position = Position(epoch, 0, rng_state(), _generator_state(loader), grouping_of(loader))
        iterator = _open(loader)
    _positions[loader] = position
    return _read(iterator, position, loader if epoch == 0 and skip == 0 else None)


def position_of(loader: Any) -> dict[str, Any] | None:
    """What a checkpoint has to hold of a loader, beside the generators: tensors and plain values."""
    position = _positions.get(loader) if loader is not None else None
    if position is None:
        return None
    dataset, a_round = getattr(loader, "dataset", None), samples_a_round(loader)
    return {
        "epoch": position.epoch,
        "read": position.read,
        "ended": position.ended,
        "samples": None if a_round is None else position.read * a_round + position.left_out,
        "batches": len(loader) if has_length(loader) else None,
        "length": len(dataset) if has_length(dataset) else None,
        "grouping": position.grouping,
        "rng": position.rng,
        "generator": position.generator,
        "generator_now": _generator_state(loader),
        "dataset": _stream_state(loader),
        "own_shards": has_own_shards(loader),
    }


def resume_at(loader: Any, state: dict[str, Any]) -> None:
    """The next :func:`batches` goes on from a saved :func:`position_of`."""
    _resumed[loader] = state


def _open(loader: Any) -> Iterator[Any]:
    iterator = iter(loader)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if isinstance(batch_sampler, ShardedBatches) and loader.num_workers == 0:
        batch_sampler.draw()
    return iterator


def _open_within(loader: Any, epoch: int, skip: int, saved: dict[str, Any] | None) -> tuple[Position, Iterator[Any]]:
    start, grouping, state = (saved or {}).get("start"), None, None
    if saved is not None and saved["epoch"] == epoch:
        set_rng_state(saved["rng"])
        _restore_generator(loader, saved["generator"])
        grouping, state = saved.get("grouping"), saved["dataset"]
    position = Position(epoch, skip, rng_state(), _generator_state(loader), grouping or grouping_of(loader))
    group_once(loader, grouping)
    a_round = samples_a_round(loader)
    if start is not None and a_round is not None:
        position.left_out = start - skip * a_round
    if state is not None:
        (loader if isinstance(loader, DispatchingLoader) else loader.dataset).load_state_dict(state)
    elif start is not None:
        start_within(loader, start)
    elif isinstance(getattr(loader, "batch_sampler", None), ShardedBatches):
        loader.batch_sampler.start = skip * loader.batch_sampler.global_batch
    else:
        iterator = _open(loader)
        for _ in range(skip):
            next(iterator, None)
        return position, iterator
    return position, _open(loader)


def _read(iterator: Iterator[Any], position: Position, first_of: Any) -> Iterator[Any]:
    """``first_of`` is the loader whose first epoch this is: it must have a batch."""
    for batch in readable(iterator):
        position.read += 1
        yield batch
    position.ended = True
    if first_of is not None and position.read == 0:
        if getattr(_reader_of(first_of), "drop_last", False):
            raise DataError(
                "train_dataset: it holds no full batch, and dataloader_drop_last leaves out what is not full; give it "
                "samples, or set that to false"
            )
        raise DataError("train_dataset: it is empty; give it samples")


def readable(iterator: Iterator[Any]) -> Iterator[Any]:
    """A data worker's error comes with its traceback in the message: leave the one line that is meant to be read."""
    try:
        yield from iterator
    except DataError as error:
        line = str(error).strip().splitlines()[-1]
        raise DataError(line.removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from error


def _set_loader_epoch(loader: Any, epoch: int) -> None:
    """Whoever wants to know the epoch: a foreign loader, its samplers, its dataset."""
    if isinstance(loader, Loader | DispatchingLoader):
        loader.set_epoch(epoch)
        return
    batch_sampler = getattr(loader, "batch_sampler", None)
    for part in (loader, batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "dataset", None)):
        set_epoch(part, epoch)


def _reader_of(loader: Any) -> Any:
    return loader.reader if isinstance(loader, DispatchingLoader) else loader


def _generator_of(loader: Any) -> torch.Generator | None:
    order = getattr(getattr(_reader_of(loader), "batch_sampler", None), "order", None)
    return order.generator if isinstance(order, FromSampler) else None


def _generator_state(loader: Any) -> torch.Tensor | None:
    generator = _generator_of(loader)
    return generator.get_state() if generator is not None else None


def _restore_generator(loader: Any, state: torch.Tensor | None) -> None:
    generator = _generator_of(loader)
    if generator is not None and state is not None:
        generator.set_state(state)


def _stream_state(loader: Any) -> Any:
    """Only of what is read in this process: data workers have copies that cannot be asked."""
    dataset, reader = getattr(loader, "dataset", None), _reader_of(loader)
    if not isinstance(dataset, IterableDataset) or getattr(reader, "num_workers", 0) or not has_state(dataset):
        return None
    return dataset.state_dict()


__all__ = [
    "batches",
    "default_collator_for",
    "eval_loader",
    "has_length",
    "keep_used_columns",
    "position_of",
    "readable",
    "resume_at",
    "signature_columns",
    "train_loader",
]
