"""Checks of the evaluation datasets before the first step, so that a run does not fail at its first evaluation."""

from __future__ import annotations

import logging
from typing import Any

from trainwright.contract import DataError
from trainwright.data.loaders import has_length
from trainwright.data.samplers import check_lengths

logger = logging.getLogger(__name__)


def check_sets(trainer: Any) -> None:
    """Make the loader of each dataset once, and report which datasets are empty.

    Raises:
        DataError: A dataset cannot be read, or the dataset that chooses the best model is empty.
    """
    args = trainer.args
    if args.eval_strategy == "no" and not args.eval_on_start:
        return
    if not type(trainer).evaluate.__module__.startswith("trainwright."):  # an override may read them differently
        return
    if any(map(trainer._overrides, ("get_eval_dataloader", "_get_dataloader"))):
        return
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    watched = _watched_set(args, sets)
    for key, dataset in sets.items():
        name = set_name(key or "eval")
        if has_length(dataset) and len(dataset) == 0:
            _tell_empty(name, args.metric_for_best_model if key == watched else None)
        elif has_length(dataset) and args.train_sampling_strategy == "group_by_length":  # measuring all takes long
            check_lengths(dataset, args.length_column_name, trainer._input_name(), name)
        elif dataset is not None:
            trainer.get_eval_dataloader(key or None)


def _watched_set(args: Any, sets: dict[str, Any]) -> str | None:
    """Return the dataset whose metric chooses the best model."""
    if args.metric_for_best_model is None:
        return None
    metric = args.metric_for_best_model.removeprefix("eval_")
    return max((key for key in sets if not key or metric.startswith(f"{key}_")), key=len, default=None)


def _tell_empty(name: str, watched: str | None) -> None:
    if watched is not None:
        raise DataError(f"{name}: it is empty, and metric_for_best_model ({watched}) is judged by it; give it samples")
    logger.warning("%s: it is empty: no evaluation will say anything about it", name)


def set_name(key: str | None) -> str:
    """Return the name of an evaluation or test dataset in messages; the Trainer's only one is ``eval``."""
    return "test_dataset" if key is None else "eval_dataset" if key == "eval" else f"eval_dataset[{key!r}]"
