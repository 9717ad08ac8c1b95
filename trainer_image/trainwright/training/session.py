"""One call of ``train``: preparation before the first step, the loop, and cleanup after the last step."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from trainwright.arguments.errors import TrainerError
from trainwright.callbacks.state import TrainerState, export_states, exports_state
from trainwright.checkpoint.background import BackgroundWriter
from trainwright.checkpoint.gathered import aliases_of
from trainwright.checkpoint.snapshot import (
    SCHEDULER,
    TRAINER_STATE,
    has_optimizer,
    missing_state,
    restore_position,
    save_model_files,
    saves_shards,
    snapshot,
)
from trainwright.checkpoint.store import CheckpointStore, how_to_accept
from trainwright.checkpoint.weights import check_ties
from trainwright.checkpoint.zero import is_of_engine, is_same_layout, load_engine
from trainwright.checkpoint.zero_layouts import load_by_name, load_other_layout
from trainwright.contract import ENV_ASYNC_SAVE, DataError, UserError
from trainwright.data import fork_server
from trainwright.data.epochs import Epochs
from trainwright.data.workers import needs_server
from trainwright.evaluation.sets import check_sets
from trainwright.integrations import waiting
from trainwright.integrations.clock import EVALUATING, IDLE, RESTORING, SAVING, STARTING, of_process
from trainwright.integrations.liger import liger_kernels
from trainwright.integrations.neftune import add_noise
from trainwright.integrations.peft import adapter_names
from trainwright.job import first_training, resolved_job, warn_if_arguments_unread, warn_if_ephemeral
from trainwright.outputs import TrainOutput
from trainwright.training import checks
from trainwright.training.activation_checkpointing import recompute_activations
from trainwright.training.agreement import check_alike
from trainwright.training.anomalies import summary_of
from trainwright.training.checks import check_optimizer
from trainwright.training.debugging import overflow_watched
from trainwright.training.hooked_loop import loop_for
from trainwright.training.loop import Loop
from trainwright.training.losses import check_trainable
from trainwright.training.metrics import speed_metrics
from trainwright.training.optimizers import averaging
from trainwright.training.prepare import check_places, divide_parts
from trainwright.training.resuming import Place, counts_anew, horizon_from, place_of, tell_differences
from trainwright.training.special_tokens import align_special_tokens
from trainwright.training.train_length import Horizon, length_of

logger = logging.getLogger(__name__)


class NoCheckpointError(UserError, FileNotFoundError):
    """The given checkpoint folder does not exist."""


def open_store(folder: str) -> CheckpointStore:
    """Open the checkpoints in a folder; the TrainingJob of this process, if any, owns them."""
    job = resolved_job()
    if job is None:
        return CheckpointStore(folder)
    return CheckpointStore.of_job(folder, job)


def make_background(trainer: Any) -> BackgroundWriter | None:
    """Return a writer for asynchronous checkpoints, if they are enabled."""
    if not saves_asynchronously(trainer):
        return None
    return BackgroundWriter(trainer.checkpoints, lambda copy: snapshot(trainer, trainer.checkpoints.is_leader, copy))


def saves_asynchronously(trainer: Any) -> bool:
    """Read the setting from the Trainer, else the environment, else the TrainingJob (``spec.output.asyncSave``)."""
    if trainer.async_save is not None:
        return bool(trainer.async_save)
    if (said := os.environ.get(ENV_ASYNC_SAVE)) is not None:
        if said.lower() not in (choices := {"1": True, "true": True, "0": False, "false": False, "": False}):
            raise UserError(f"{ENV_ASYNC_SAVE}: it must be 1 or 0, not {said!r}")
        return choices[said.lower()]
    job = resolved_job()
    return job is not None and job.async_save


def claim_output(trainer: Any) -> None:
    """Claim the output folder for the TrainingJob before reading it, also when a user's script trains.

    A run without a TrainingJob claims nothing; it removes unfinished files of a killed writer.
    """
    folder = trainer._get_output_dir(trial=trainer._trial)
    if folder != str(trainer.checkpoints.output):
        trainer.checkpoints = open_store(folder)
    job = resolved_job()
    if job is not None or trainer.args.save_strategy != "no":
        trainer.checkpoints.claim(adopt=job is not None and job.adopt_output)
        if saves_shards(trainer) or trainer._strategy.owns_checkpoints:
            trainer.checkpoints.check_shared()
    trainer.checkpoints.notes = notes_of(trainer)


def notes_of(trainer: Any) -> dict[str, Any]:
    """What the manifest of a checkpoint says about the layout of this run."""
    strategy = trainer._strategy
    layout = {"sharded": strategy.sharded, "mesh": dict(strategy.mesh)}
    if strategy.owns_checkpoints:
        layout["zero"] = strategy.stage
    aliases = aliases_of(trainer.model) if saves_shards(trainer) else {}
    return {"layout": layout, "dataSize": strategy.data_size, **({"aliases": aliases} if aliases else {})}


def train(trainer: Any, resume_from: str | bool | None, ignore_keys: list[str] | None) -> TrainOutput:
    """Prepare, run the loop, and finish. See ``Trainer.train``."""
    with fork_server.running(needs_server(trainer.args)):  # fork first, while few threads run
        return train_with_workers(trainer, resume_from, ignore_keys)


def train_with_workers(trainer: Any, resume_from: str | bool | None, ignore_keys: list[str] | None) -> TrainOutput:
    check_ready(trainer)
    check_alike(trainer, resume_from)
    claim_output(trainer)
    of_process().enter(STARTING)
    with of_process().spending(RESTORING):
        checkpoint = find_checkpoint(trainer, resume_from)
    if checkpoint is not None:
        tell_differences(trainer, checkpoint)
        tell_afresh(trainer, checkpoint)
        if not reads_late(trainer, checkpoint):
            with of_process().spending(RESTORING):
                trainer._load_from_checkpoint(str(checkpoint))
        if trainer.args.auto_find_batch_size and (checkpoint / TRAINER_STATE).is_file():
            found = TrainerState.load_from_json(checkpoint / TRAINER_STATE).train_batch_size
            trainer._train_batch_size = found or trainer._train_batch_size
    if trainer.args.activation_checkpointing:
        recompute_activations(trainer.model, trainer.args.activation_checkpointing_kwargs)
    align_special_tokens(trainer.model, trainer.processing_class)
    with fused(trainer), noise_on_embeddings(trainer), overflow_watched(trainer.model, trainer.args.debug):
        while True:
            try:
                return trainer._inner_training_loop(  # type: ignore[no-any-return]
                    batch_size=trainer._train_batch_size,
                    args=trainer.args,
                    resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
                    trial=trainer._trial,
                    ignore_keys_for_eval=ignore_keys,
                )
            except RuntimeError as error:
                if not (trainer.args.auto_find_batch_size and should_reduce_batch_size(error)):
                    raise
            take_smaller_batches(trainer)


def take_smaller_batches(trainer: Any) -> None:
    """Reduce the batch size to nine tenths after an out-of-memory error, and free all memory."""
    trainer.model_wrapped = trainer.model
    trainer._strategy.recover(trainer.model)
    clear_device_cache(garbage_collection=True)
    tried, trainer._train_batch_size = trainer._train_batch_size, int(trainer._train_batch_size * 0.9)
    if trainer._train_batch_size == 0:
        raise TrainerError(f"auto_find_batch_size: not even a batch of {tried} fits into memory; take a smaller model")
    logger.warning("a batch of %d does not fit into memory, trying %d", tried, trainer._train_batch_size)


def fused(trainer: Any) -> AbstractContextManager[None]:
    """Use Liger's kernels during the run, if enabled."""
    args = trainer.args
    return liger_kernels(trainer.model, args.liger_kernel_config) if args.use_liger_kernel else nullcontext()


@contextmanager
def noise_on_embeddings(trainer: Any) -> Iterator[None]:
    """Use NEFTune during the run, if enabled."""
    alpha = trainer.neftune_noise_alpha
    handle = add_noise(trainer.model, alpha) if alpha is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def train_from(trainer: Any, checkpoint: Path | None, ignore_keys: list[str] | None) -> TrainOutput:
    with trainer._memory.stage("train") as metrics:
        loop = run(trainer, checkpoint, ignore_keys)
    return finish(trainer, loop, metrics)


def run(trainer: Any, checkpoint: Path | None, ignore_keys: list[str] | None) -> Loop:
    """Prepare the run, and train to the last step."""
    dataloader = trainer.get_train_dataloader()
    epochs = trainer._epochs = Epochs(dataloader, trainer._strategy.data_size)
    horizon = Horizon.of_values(trainer.set_initial_training_values(trainer.args, dataloader))
    horizon, place = begin_state(trainer, horizon, checkpoint, dataloader)
    model, clock = prepare(trainer, horizon, dataloader), of_process()
    clock.begin(trainer.state.global_step)
    if trainer._trial is not None:  # every trial of a search begins at step 0
        clock.reached = 0
    if checkpoint is not None:
        with clock.spending(RESTORING):
            load_state(trainer, str(checkpoint))
    averaging.begin(trainer.optimizer)
    trainer._background = make_background(trainer)
    loop = trainer._loop = loop_for(trainer)(trainer, model, epochs, horizon, ignore_keys)
    loop.checkpoint, loop.go_back = checkpoint, partial(go_back, trainer)
    clock.anomalies = summary_of(trainer.state.log_history)
    announce(trainer, horizon, place)
    trainer._strategy.zero_grad()
    loop.event("on_train_begin")
    if trainer.args.eval_on_start:
        with clock.spending(EVALUATING):
            trainer._evaluate(trainer._trial, ignore_keys, skip_scheduler=True)
    if checkpoint is not None:
        goes_on = trainer.state.global_step and not trainer.args.ignore_data_skip
        restore_position(trainer, checkpoint, epochs if goes_on else None, trainer._load_rng_state, place.start)
    clock.follow_compilation()
    with loop.background or nullcontext():
        loop.run(place.epoch, place.skip)
        clock.enter(SAVING if loop.background is not None else IDLE)
    loop.read_losses()
    clock.enter(IDLE)
    return loop


def reads_late(trainer: Any, checkpoint: Path) -> bool:
    """Whether the weights are read into the prepared model: by the engine, or by each rank its part."""
    strategy = trainer._strategy
    return bool(strategy.sharded or (strategy.owns_checkpoints and has_optimizer(checkpoint)))


def load_into_engine(trainer: Any, checkpoint: Path) -> None:
    """Restore weights and optimizer in DeepSpeed's engine, and the schedule if an engine saved it."""
    strategy, ranks = trainer._strategy, trainer.checkpoints.ranks
    if not is_of_engine(checkpoint):
        load_by_name(strategy.engine, checkpoint, strategy.groups, trainer.state.global_step, ranks)
    elif not is_same_layout(checkpoint, strategy.stage, ranks.world_size):
        load_other_layout(strategy.engine, checkpoint, trainer.lr_scheduler, ranks)
    else:
        is_whole = not adapter_names(trainer.model)
        load_engine(strategy.engine, checkpoint, trainer.lr_scheduler, ranks, strict=is_whole)


def load_state(trainer: Any, checkpoint: str) -> None:
    """Load optimizer, schedule and scaler, and the weights if each rank holds only a part of them.

    If one rank cannot read its part, all ranks raise its error.
    """
    is_late = reads_late(trainer, Path(checkpoint))

    def load() -> None:
        if is_late and not trainer._strategy.owns_checkpoints:
            trainer._load_from_checkpoint(checkpoint)
        trainer._load_optimizer_and_scheduler(checkpoint)
        trainer._load_scaler(checkpoint)

    if is_late and trainer._strategy.owns_checkpoints:
        trainer._load_from_checkpoint(checkpoint)
    trainer.checkpoints.ranks.agree(load)


def go_back(trainer: Any, checkpoint: Path) -> None:
    """Restore weights, optimizer, schedule and scaler in the midst of a run; steps and data go on where they are."""
    if not reads_late(trainer, checkpoint):
        trainer._load_from_checkpoint(str(checkpoint))
    load_state(trainer, str(checkpoint))


def announce(trainer: Any, horizon: Horizon, place: Place) -> None:
    accumulated, numbers = trainer.args.gradient_accumulation_steps, f"{trainer.get_num_trainable_parameters():,}"
    logger.info("training %s parameters on %s samples, to step %s", numbers, horizon.num_examples, horizon.max_steps)
    logger.info(
        "a step takes %d samples: %d a device, %d data ranks, %d accumulated",
        horizon.total_batch_size, trainer._train_batch_size, trainer._strategy.data_size, accumulated,
    )  # fmt: skip
    if trainer.state.global_step:
        logger.info(
            "resuming after step %d: epoch %d, %d batches in", trainer.state.global_step, place.epoch, place.skip
        )


def check_ready(trainer: Any) -> None:
    """Raise errors that can be detected before work starts, and warn about output that would be lost."""
    warn_if_arguments_unread()
    if trainer.args.should_save:
        warn_if_ephemeral(trainer._get_output_dir(trial=trainer._trial))
    if trainer.train_dataset is None and not trainer._overrides("get_train_dataloader"):
        raise DataError("train_dataset: the Trainer was made without one; give it the data to train on")
    if length_of(trainer.train_dataset) == 0:
        raise DataError("train_dataset: it is empty; give it samples to train on")
    check_places(trainer.model, trainer.args)
    check_trainable(trainer.model, trainer.label_names)
    checks.check_methods(trainer)
    checks.check_best_metric(trainer)
    check_sets(trainer)
    if trainer.args.save_strategy != "no":
        check_ties(trainer.model)


def find_checkpoint(trainer: Any, resume_from: str | bool | None) -> Path | None:
    """Find the checkpoint to resume from: a path, the latest in the output folder for True, none for False.

    None means no checkpoint, except for the first training in a TrainingJob: it resumes from the latest of the job.
    A trial of a search starts anew, because its values may differ from those of the checkpoint.
    """
    job = first_training(trainer._get_output_dir(trial=trainer._trial))
    if resume_from is None and job is not None and trainer._trial is None:
        newest: Path | None = trainer.checkpoints.newest_of(job.uid, job.adopt_output)
        if newest is not None and trainer.is_world_process_zero():
            logger.warning("going on from %s of this job; train(resume_from_checkpoint=False) begins anew", newest)
        return newest
    if resume_from is None or resume_from is False:
        return None
    if resume_from is True:
        newest = trainer.checkpoints.newest_intact(foreign=True)
        if newest is None:
            raise UserError(  # scripts match this message, and then train from the start
                f"resume_from_checkpoint: No valid checkpoint found in output directory ({trainer.args.output_dir}); "
                "train from the start"
            )
        return newest
    folder = Path(resume_from)
    trainer.checkpoints.ranks.agree(lambda: check_is_there(folder))
    check_files(trainer.checkpoints, folder)
    return folder


def check_is_there(folder: Path) -> None:
    if not folder.is_dir():
        raise NoCheckpointError(
            f"resume_from_checkpoint: Can't find a valid checkpoint at {folder}: it does not exist; give the path of a "
            "checkpoint-N folder"
        )


def check_files(store: CheckpointStore, folder: Path) -> None:
    """Warn about missing or edited files of a checkpoint that the user chose; raise if a file is damaged."""
    missing, changed = store.changes(folder)
    refused = f"resume_from_checkpoint: {folder} cannot be used:"
    for name in {*changed, TRAINER_STATE} - {*missing}:
        if name.endswith(".json") and (folder / name).exists() and not _reads_as_json(folder / name):
            raise UserError(f"{refused} its {name} cannot be read; take another one")
    if binary := [name for name in changed if not name.endswith(".json")]:
        raise UserError(
            f"{refused} {binary[0]} is not as it was saved (its size or checksum differs); {how_to_accept(folder)}"
        )
    if changed:
        logger.warning("%s: %s changed since it was saved, and is taken as it stands", folder, " and ".join(changed))
    if missing:
        logger.warning("%s: %s is gone from it", folder, ", ".join(missing))


def _reads_as_json(path: Path) -> bool:
    """Whether the file is valid JSON: edited rather than damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) is not None
    except (OSError, ValueError):
        return False


def tell_afresh(trainer: Any, checkpoint: Path) -> None:
    """Warn about missing parts of the checkpoint; with ``save_only_model`` it holds only the model."""
    if absent := missing_state(trainer, checkpoint):
        has_state = has_optimizer(checkpoint) or (checkpoint / SCHEDULER).is_file()
        what = "lacks files" if has_state else "holds the model alone (save_only_model)"
        warnings.warn(f"{checkpoint}: {what}; these start afresh: {', '.join(absent)}", stacklevel=2)


def begin_state(trainer: Any, horizon: Horizon, checkpoint: Path | None, dataloader: Any) -> tuple[Horizon, Place]:
    """Set ``trainer.state`` to the start, or restore it from the checkpoint; return length and start of the run."""
    args, stateful = trainer.args, [c for c in trainer.callback_handler.callbacks if exports_state(c)]
    if checkpoint is None or not (checkpoint / TRAINER_STATE).is_file():
        state = TrainerState(stateful_callbacks=[*stateful, trainer.control])
    else:
        state = TrainerState.load_from_json(checkpoint / TRAINER_STATE)
        if state.best_model_checkpoint is not None and not Path(state.best_model_checkpoint).is_dir():
            logger.warning("the best checkpoint %s is not there any more", state.best_model_checkpoint)
            state.best_model_checkpoint = None
    trainer.state, trainer._tokens_before, place = state, state.num_input_tokens_seen, Place()
    if checkpoint is not None:
        place = place_of(trainer, checkpoint, horizon, dataloader)
        is_changed = counts_anew(trainer, checkpoint, horizon, dataloader)
        horizon = horizon_from(place, horizon, args, state.global_step, is_changed)
    state.train_batch_size = trainer._train_batch_size
    state.compute_steps(args, horizon.max_steps)
    state.init_training_references(trainer, horizon.max_steps, horizon.epochs, trial=trainer._trial)
    if checkpoint is not None:
        trainer._load_callback_state()
    return horizon, place


def prepare(trainer: Any, horizon: Horizon, dataloader: Any) -> Any:
    """Create optimizer, wrapped model and schedule, and pass them to the callbacks."""
    if trainer._created_lr_scheduler:  # from an earlier run; its optimizer is reused
        trainer.lr_scheduler, trainer._created_lr_scheduler = None, False
    together = trainer._overrides("create_optimizer_and_scheduler")

    def make_optimizer() -> Any:
        trainer.create_optimizer_and_scheduler(horizon.max_steps) if together else trainer.create_optimizer()
        return trainer.optimizer

    strategy = trainer._strategy
    divide_parts(trainer.model, strategy, horizon.max_steps)
    prepared = strategy.prepare(trainer.model, make_optimizer, trainer._wrap_model, horizon.max_steps)
    trainer.model_wrapped, trainer.optimizer = prepared
    if strategy.owns_checkpoints:
        trainer.deepspeed = strategy.engine
    if strategy.schedule_of_engine is not None:
        trainer.lr_scheduler, trainer._created_lr_scheduler = strategy.schedule_of_engine, True
    if not together or trainer.lr_scheduler is None:
        trainer.create_scheduler(num_training_steps=horizon.max_steps)
    if not strategy.owns_checkpoints:  # an engine's optimizer holds partitions
        check_optimizer(trainer.optimizer, trainer.model)
    trainer.is_prepared, handler = True, trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = trainer.model, trainer.optimizer, trainer.lr_scheduler
    handler.train_dataloader = dataloader
    return trainer.model_wrapped


def finish(trainer: Any, loop: Loop, measured: dict[str, float]) -> TrainOutput:
    """Compute the metrics of the run, load the best model if requested, and call ``on_train_end``."""
    state, args = trainer.state, trainer.args
    loop.work.settle()
    steps = state.global_step - loop.first_step
    loss = loop.mean_loss()
    samples = loop.horizon.num_train_samples * steps / max(state.max_steps, 1)
    metrics = speed_metrics("train", loop.start_time, num_samples=samples, num_steps=steps)
    trainer.store_flos()
    metrics |= {"total_flos": state.total_flos, **measured}
    if steps:  # a run that had ended before has no loss of its own, and 0 would be taken for one
        metrics["train_loss"] = loss
    trainer.log(metrics)
    averaging.end(trainer.optimizer)
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        logger.info("loading the best model, %s (%s)", state.best_model_checkpoint, state.best_metric)
        with of_process().spending(RESTORING):
            trainer._load_best_model()
    if args.save_total_limit == 1 and state.best_model_checkpoint is not None:
        keep_only_best(trainer)
    loop.event("on_train_end")
    trainer._finish_current_push()
    return TrainOutput(state.global_step, loss, metrics)


def keep_only_best(trainer: Any) -> None:
    """Delete all checkpoints except the best, if only one may be kept."""
    best = Path(trainer.state.best_model_checkpoint)
    if trainer.checkpoints.is_leader:
        for step in trainer.checkpoints.steps():
            if trainer.checkpoints.path(step).name != best.name:
                trainer.checkpoints.delete(step)


def save_checkpoint(trainer: Any) -> None:
    """Write ``checkpoint-<step>`` and delete checkpoints over the limit; all ranks must call this."""
    args, state, store, background = trainer.args, trainer.state, trainer.checkpoints, trainer._background
    if background is not None:
        background.settle()
    trainer.store_flos()
    if state.best_global_step:
        best = store.path(state.best_global_step)
        if state.best_global_step == state.global_step or best.is_dir():
            state.best_model_checkpoint = str(best)
    stateful = [c for c in trainer.callback_handler.callbacks if exports_state(c)]
    state.stateful_callbacks = export_states([*stateful, trainer.control])
    best_folder = [state.best_model_checkpoint] if state.best_model_checkpoint else []
    rotate = partial(store.rotate, args.save_total_limit, keep=best_folder, newest=state.global_step)
    if background is not None:
        as_saved = copy.copy(state)
        as_saved.log_history = list(state.log_history)
        background.start(state.global_step, then=rotate, done=lambda: tell_saved(trainer, as_saved))
        return
    with shown(trainer):
        pieces = snapshot(trainer, store.is_leader)
        store.write(state.global_step, [*pieces.later, *pieces.at_once])
    rotate()


def shown(trainer: Any) -> AbstractContextManager[None]:
    """Show on rank 0 how much of a checkpoint is written, if that takes long; the one before tells how large it is."""
    if not trainer.state.is_world_process_zero:
        return nullcontext()
    store, step = trainer.checkpoints, trainer.state.global_step

    def expected() -> int | None:
        steps = [other for other in store.steps() if other != step]
        return waiting.bytes_below([store.path(steps[-1])]) if steps else None

    def written() -> int:
        return waiting.bytes_below(list(store.output.glob(f".checkpoint-{step}.*")))

    return waiting.growing(f"saving checkpoint-{step}", written, expected)


def tell_saved(trainer: Any, state: TrainerState) -> None:
    """Call ``on_save`` with the state of the checkpoint, which may be some steps behind the run."""
    trainer.control = trainer.callback_handler.on_save(trainer.args, state, trainer.control)


def save_model(trainer: Any, folder: str, weights: dict[str, Any] | None = None) -> None:
    """Write weights (by default those of the model), configuration and tokenizer.

    A sharded model is saved by all ranks together.
    """

    def save() -> None:
        try:
            with averaging.averaged_weights(trainer.optimizer):
                save_model_files(trainer, Path(folder), weights)
        except OSError as error:
            raise UserError(f"{folder}: cannot save the model: {error.strerror or error}") from error

    if trainer._strategy.sharded and weights is None:
        trainer.checkpoints.ranks.agree(save)
    else:
        save()
