"""The length of a run in epochs, optimizer steps and samples, from the length of the data and the arguments."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainwright.contract import DataError


def length_of(sized: Any) -> int | None:
    """Return ``len``, or None if there is none."""
    try:
        return len(sized)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def num_examples(dataloader: Any, fallback_batch_size: int) -> int:
    """Return the samples in one pass; if the dataset's length is unknown, batches x batch size."""
    length = length_of(getattr(dataloader, "dataset", None))
    return length if length is not None else len(dataloader) * fallback_batch_size


@dataclass(frozen=True)
class Horizon:
    """The length of a run. A step is an optimizer step: ``gradient_accumulation_steps`` micro-batches on every rank."""

    epochs: int
    steps_per_epoch: int
    batches_per_epoch: int
    max_steps: int
    num_examples: int
    num_train_samples: float
    total_batch_size: int

    @staticmethod
    def of_values(values: tuple[Any, ...]) -> Horizon:
        """Convert the values that ``Trainer.set_initial_training_values`` returns."""
        epochs, steps, examples, samples, total_batch_size, batches, max_steps = values
        return Horizon(epochs, steps, batches, max_steps, examples, samples, total_batch_size)

    @staticmethod
    def of(args: Any, dataloader: Any, total_batch_size: int, count: Callable[[Any], int] | None = None) -> Horizon:
        """``total_batch_size``: samples of one step over all ranks; ``count`` returns those of a pass over a loader.

        Raises:
            DataError: The dataset is empty, or has no length and ``max_steps`` is not set.
        """
        batches, accumulation = length_of(dataloader), args.gradient_accumulation_steps
        if batches is None:
            return Horizon._without_length(args, total_batch_size)
        if batches == 0:
            raise DataError("train_dataset: it holds no batch; give it samples, or set dataloader_drop_last to false")
        steps_per_epoch = math.ceil(batches / accumulation)
        samples = count(dataloader) if count else num_examples(dataloader, args.per_device_train_batch_size)
        if args.max_steps > 0:
            max_steps = args.max_steps
            epochs, trained = math.ceil(max_steps / steps_per_epoch), max_steps * total_batch_size
        else:
            max_steps = math.ceil(args.num_train_epochs * steps_per_epoch)
            epochs, trained = math.ceil(args.num_train_epochs), samples * args.num_train_epochs
        return Horizon(epochs, steps_per_epoch, batches, max_steps, samples, trained, total_batch_size)

    @staticmethod
    def _without_length(args: Any, total_batch_size: int) -> Horizon:
        if args.max_steps <= 0:
            raise DataError("max_steps: the train_dataset has no length, so set max_steps to say where training ends")
        batches, samples = args.max_steps * args.gradient_accumulation_steps, args.max_steps * total_batch_size
        return Horizon(sys.maxsize, args.max_steps, batches, args.max_steps, samples, samples, total_batch_size)
