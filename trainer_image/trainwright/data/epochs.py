"""How a run reads its training loader: epoch by epoch, also from the middle of an epoch.

Randomness. The order of an epoch depends on seed and epoch (or, if the user chooses so, on the state of torch's default
generator at the start of the epoch, which is saved for resuming). Without data workers, datasets and collators draw
from the run's generators, which a checkpoint holds, and no batch is prefetched. Data workers seed themselves for each
batch (see :mod:`trainwright.data.streams`). Starting an epoch draws one number from the default generator, like torch's
loader, so that dropout gets the same numbers as with Hugging Face; resuming within an epoch leaves every generator
unchanged.

The position of a loader is saved and restored with the protocol of torchdata's StatefulDataLoader: ``state_dict`` and
``load_state_dict``. Our loaders implement it; :class:`Epochs` implements it for users' loaders.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import IterableDataset

from trainwright.contract import DataError
from trainwright.data.dispatch import DispatchingLoader
from trainwright.data.loader import Loader, Position, Reading
from trainwright.data.place import group_once, grouping_of, has_own_shards, order_of, samples_a_round, start_within
from trainwright.data.samplers import FromSampler, ShardedBatches
from trainwright.data.streams import has_state, set_epoch
from trainwright.data.workers import watch_start
from trainwright.devices.seeding import preserved_rng, rng_state, set_rng_state


class Epochs:
    """The epochs of any loader.

    Args:
        loader: Any loader; ours store their position, so that several ``Epochs`` of one loader share it.
        data_size: Number of ranks that read different samples; None for all ranks.
    """

    def __init__(self, loader: Any, data_size: int | None = None) -> None:
        self.loader, self._data_size = loader, data_size
        self._reading = loader.reading if isinstance(loader, Loader | DispatchingLoader) else Reading()

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Start an epoch: return an iterator over its batches, without the first ``skip``.

        The order is drawn before this returns. Our loaders skip without reading the data; streams resume from their
        saved state if they have one; other loaders are read and the batches discarded. If the loaded state has a
        ``start``, the epoch begins at this sample, which is not at a batch boundary, and counts ``skip`` batches as
        done.

        Raises:
            DataError: During iteration, a collator failed or the first epoch has no batch.
        """
        loader = self.loader
        _set_loader_epoch(loader, epoch)
        watch_start(loader, "train_dataset")
        saved, self._reading.resumed = self._reading.resumed, None
        if skip or (saved and saved.get("start")):
            with preserved_rng():
                position, iterator = self._open_within(epoch, skip, saved)
        else:
            _restore_generator(loader, saved["generator_now"] if saved else None)
            position = Position(epoch, 0, rng_state(), _generator_state(loader), grouping_of(loader))
            iterator = _open(loader)
        self._reading.position = position
        self._reading.saver = partial(_state_of, data_size=self._data_size)
        return _read(iterator, position, loader if epoch == 0 and skip == 0 else None)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the loader's state for a checkpoint, besides the generators: tensors and plain values.

        None before the first epoch.
        """
        return _state_of(self.loader, self._reading, self._data_size)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next :meth:`batches` resume from a saved :meth:`state_dict`."""
        self._reading.resumed = state

    def _open_within(self, epoch: int, skip: int, saved: dict[str, Any] | None) -> tuple[Position, Iterator[Any]]:
        loader = self.loader
        start, grouping, state = (saved or {}).get("start"), None, None
        if saved is not None and saved["epoch"] == epoch:
            set_rng_state(saved["rng"])
            _restore_generator(loader, saved["generator"])
            grouping, state = saved.get("grouping"), saved["dataset"]
        position = Position(epoch, skip, rng_state(), _generator_state(loader), grouping or grouping_of(loader))
        group_once(loader, grouping)
        a_round = samples_a_round(loader, self._data_size)
        if start is not None and a_round is not None:
            position.left_out = start - skip * a_round
        if state is not None:
            loader.load_stream(state) if isinstance(loader, DispatchingLoader) else loader.dataset.load_state_dict(
                state
            )
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


def _state_of(loader: Any, reading: Reading, data_size: int | None) -> dict[str, Any] | None:
    position = reading.position
    if position is None:
        return None
    dataset, a_round = getattr(loader, "dataset", None), samples_a_round(loader, data_size)
    return {
        "epoch": position.epoch,
        "read": position.read,
        "ended": position.ended,
        "samples": None if a_round is None else position.read * a_round + position.left_out,
        "batches": _length(loader),
        "length": _length(dataset),
        "grouping": position.grouping,
        "rng": position.rng,
        "generator": position.generator,
        "generator_now": _generator_state(loader),
        "dataset": _stream_state(loader),
        "own_shards": has_own_shards(loader),
    }


def batches(loader: Any, *, epoch: int, skip: int = 0) -> Iterator[Any]:
    """Return one epoch of a loader; see :meth:`Epochs.batches`."""
    return Epochs(loader).batches(epoch, skip)


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def _open(loader: Any) -> Iterator[Any]:
    iterator: Iterator[Any] = iter(loader)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if isinstance(batch_sampler, ShardedBatches) and loader.num_workers == 0:
        batch_sampler.draw()
    return iterator


def _read(iterator: Iterator[Any], position: Position, first_of: Any) -> Iterator[Any]:
    """Yield the batches and update ``position``; ``first_of`` is the loader in its first epoch, which needs a batch."""
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
    """Reduce the traceback in a data worker's error message to the one line for the user."""
    try:
        yield from iterator
    except DataError as error:
        line = str(error).strip().splitlines()[-1]
        raise DataError(line.removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from error


def _set_loader_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` where it exists: on a foreign loader, its samplers, its dataset."""
    if isinstance(loader, Loader | DispatchingLoader):
        loader.set_epoch(epoch)
        return
    batch_sampler = getattr(loader, "batch_sampler", None)
    for part in (loader, batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "dataset", None)):
        set_epoch(part, epoch)


def _reader_of(loader: Any) -> Any:
    return loader.reader if isinstance(loader, DispatchingLoader) else loader


def _generator_of(loader: Any) -> torch.Generator | None:
    order = order_of(loader)
    return order.generator if isinstance(order, FromSampler) else None


def _generator_state(loader: Any) -> torch.Tensor | None:
    generator = _generator_of(loader)
    return generator.get_state() if generator is not None else None


def _restore_generator(loader: Any, state: torch.Tensor | None) -> None:
    generator = _generator_of(loader)
    if generator is not None and state is not None:
        generator.set_state(state)


def _stream_state(loader: Any) -> Any:
    """Return the state of a stream that this process reads; copies in data workers are not accessible."""
    dataset, reader = getattr(loader, "dataset", None), _reader_of(loader)
    if not isinstance(dataset, IterableDataset) or getattr(reader, "num_workers", 0) > 0 or not has_state(dataset):
        return None
    return cast(Any, dataset).state_dict()
