"""Where an interrupted run resumes, although its batches, ranks or other arguments may have changed.

A checkpoint counts the progress within an epoch in samples. If a step has as many samples as before, the run resumes
at the next step. Otherwise it splits the rest of the same order into batches of the new size, and continues to count
from the completed steps.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainwright.arguments.errors import shown
from trainwright.checkpoint.snapshot import (
    TRAINER_STATE,
    TRAINING_ARGS,
    arguments_as_json,
    data_size_of,
    has_optimizer,
    saved_position,
)
from trainwright.data.place import can_start_within, samples_a_round
from trainwright.data.samplers import ShardedBatches
from trainwright.training.train_length import Horizon, length_of

logger = logging.getLogger(__name__)

_NOT_TOLD = frozenset({
    "output_dir", "resume_from_checkpoint", "run_name", "project", "local_rank", "do_train", "do_eval", "do_predict",
    "disable_tqdm", "report_to", "log_level", "log_level_replica", "log_on_each_node", "skip_memory_metrics", "debug",
    "push_to_hub", "ddp_timeout", "ddp_backend", "dataloader_pin_memory", "dataloader_prefetch_factor", "use_cpu",
    "dataloader_persistent_workers", "gradient_checkpointing", "gradient_checkpointing_kwargs", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "auto_find_batch_size",
})  # fmt: skip
"""Arguments that affect neither training nor logs, evaluations and checkpoints; those of the Hub do not either."""

_KEPT = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
"""Arguments that the optimizer's state restores; type and length of the schedule come from the new run."""


@dataclass(frozen=True)
class Place:
    """``skip`` micro-batches of ``epoch`` are done; ``start`` is the first sample if it is not at a batch boundary."""

    epoch: int = 0
    skip: int = 0
    start: int | None = None


def place_of(trainer: Any, folder: Path, horizon: Horizon, loader: Any) -> Place:
    """Return where ``trainer``, with the state of the checkpoint in ``folder``, resumes."""
    if not (folder / TRAINER_STATE).is_file():
        return Place()
    epoch, samples, is_complete = _seen(trainer, folder, horizon, loader)
    if is_complete:
        return Place(epoch + 1)
    if trainer.args.ignore_data_skip:
        return Place(epoch)
    a_round, length = (
        samples_a_round(loader, trainer._strategy.data_size) or horizon.total_batch_size,
        length_of(loader),
    )
    if length is None:
        skip = samples // a_round
    elif (left := _batches_of_rest(loader, samples, a_round)) > 0:
        skip = horizon.batches_per_epoch - left
    else:
        return Place(epoch + 1)
    if samples == skip * a_round:
        return Place(epoch, skip)
    if can_start_within(loader):
        return Place(epoch, skip, samples)
    logger.warning(
        "%s: %d samples of epoch %d are done, and this loader begins with a whole batch: %d of them are trained on "
        "again", folder, samples, epoch, samples % a_round,
    )  # fmt: skip
    return Place(epoch, samples // a_round)


def _seen(trainer: Any, folder: Path, horizon: Horizon, loader: Any) -> tuple[int, int, bool]:
    """Return the current epoch, its number of trained samples, and whether the epoch is complete."""
    state, args, position = trainer.state, trainer.args, saved_position(trainer, folder)
    before = _round_before(trainer, folder, loader)
    if position is not None:
        samples, batches = position.get("samples"), position.get("batches")
        samples = position["read"] * before if samples is None else samples
        return position["epoch"], samples, position["ended"] or (batches is not None and position["read"] >= batches)
    examples = length_of(getattr(loader, "dataset", None))
    if examples is None or not state.epoch:
        epoch, step = divmod(state.global_step, horizon.steps_per_epoch)
        return epoch, step * args.gradient_accumulation_steps * before, False
    share, epoch = math.modf(state.epoch)  # from another library, or without training state: only the epoch is known
    return int(epoch), round(share * math.ceil(examples / before)) * before, False


def _round_before(trainer: Any, folder: Path, loader: Any) -> int:
    """Return the samples of one batch over all ranks, in the run that wrote the checkpoint."""
    size = trainer.state.train_batch_size or trainer._train_batch_size
    config = arguments_of(folder).get("accelerator_config")
    splits = isinstance(config, dict) and config.get("split_batches")  # older releases wrote a string
    ranks = data_size_of(folder) or trainer._strategy.data_size
    return int(size) if splits else int(size) * ranks


def _batches_of_rest(loader: Any, samples: int, a_round: int) -> int:
    """Return the number of batches in an epoch after ``samples``."""
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, ShardedBatches):
        return batches.batches_of(len(batches.order) - samples)
    return max(0, len(loader) - samples // a_round)


def horizon_from(place: Place, horizon: Horizon, args: Any, done: int, is_changed: bool) -> Horizon:
    """Return the length of a run that resumes at step ``done`` with another number of samples per step."""
    if not is_changed:
        return horizon
    left = math.ceil((horizon.batches_per_epoch - place.skip) / args.gradient_accumulation_steps)
    reached = (place.epoch + 1) * horizon.steps_per_epoch - left
    if args.max_steps <= 0:
        return replace(horizon, max_steps=done + max(0, horizon.max_steps - reached))
    return replace(horizon, epochs=math.ceil((reached + max(0, args.max_steps - done)) / horizon.steps_per_epoch))


def counts_anew(trainer: Any, folder: Path, horizon: Horizon, loader: Any) -> bool:
    """Whether the number of steps per epoch differs from the checkpoint's."""
    if length_of(loader) is None:
        return False
    position, examples = saved_position(trainer, folder) or {}, length_of(getattr(loader, "dataset", None))
    step = position.get("step") or _step_before(trainer, folder, loader)
    return step != horizon.total_batch_size or position.get("length", examples) != examples


def _step_before(trainer: Any, folder: Path, loader: Any) -> int:
    accumulated = arguments_of(folder).get("gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
    return _round_before(trainer, folder, loader) * int(accumulated)


# -- what is reported


def arguments_of(folder: Path) -> dict[str, Any]:
    """Return the arguments in a checkpoint; empty if another library wrote it."""
    try:
        found = json.loads((folder / TRAINING_ARGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tell_differences(trainer: Any, folder: Path) -> None:
    """Log once all arguments that differ from the checkpoint's, with old and new values."""
    if trainer.args.process_index != 0:
        return
    before, now = _told(trainer, folder), json.loads(arguments_as_json(trainer.args))
    now |= {"train_dataset": length_of(trainer.train_dataset)}
    changed = {name: (value, now[name]) for name, value in before.items() if name in now and now[name] != value}
    kept = {name: changed.pop(name) for name in _KEPT if name in changed} if has_optimizer(folder) else {}
    if changed:
        words = ", ".join(f"{name} {_word(name, old)} -> {_word(name, new)}" for name, (old, new) in changed.items())
        logger.warning("%s: this run goes on with other arguments than those it was written with: %s", folder, words)
    if kept:
        words = ", ".join(f"{name} {_word(name, old)}, not {_word(name, new)}" for name, (old, new) in kept.items())
        logger.warning("%s: its optimizer goes on as it was saved: %s", folder, words)


def _told(trainer: Any, folder: Path) -> dict[str, Any]:
    """Return the arguments to compare, from the checkpoint or, if it has none, from the trainer's state."""
    found = {name: value for name, value in arguments_of(folder).items() if _is_told(name)}
    if not found:
        state = _state_of(folder)
        names = ("save_steps", "eval_steps", "logging_steps")
        found = {name: state[name] for name in names if state.get(name) and (getattr(trainer.args, name) or 0) >= 1}
        epochs = state.get("num_train_epochs")  # whole ones, and counted from max_steps if that is given
        if epochs and trainer.args.max_steps <= 0 and epochs != math.ceil(trainer.args.num_train_epochs):
            found["num_train_epochs"] = epochs
        found |= {"per_device_train_batch_size": state["train_batch_size"]} if state.get("train_batch_size") else {}
    length = (saved_position(trainer, folder) or {}).get("length")
    return found if length is None else found | {"train_dataset": length}


def _is_told(name: str) -> bool:
    return name not in _NOT_TOLD and not name.startswith(("hub_", "trackio_"))


def _state_of(folder: Path) -> Mapping[str, Any]:
    try:
        state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _word(name: str, value: Any) -> str:
    return f"{value} samples" if name == "train_dataset" else shown(name, value)
