"""The contents of a checkpoint, in the files of Hugging Face's Trainer, and how a run resumes from them.

The files are ``model.safetensors`` with ``config.json`` and the tokenizer, if any, ``optimizer.pt``, ``scheduler.pt``,
``scaler.pt``, ``trainer_state.json``, and ``rng_state.pth`` (``rng_state_<rank>.pth`` with several ranks). We add
``training_args.json``, and ``data_state.pt`` (or ``data_state_<rank>.pt``). ``training_args.bin``, a pickle without
tokens, is written for scripts that read it; we never do. All files are read with ``weights_only=True``, so a checkpoint
cannot run code.

With a strategy that shards the model, weights and optimizer are in folders of shards instead
(:mod:`trainwright.checkpoint.sharded`), or, if ``state_dict_type`` asks for it, in the files of a whole model. A run of
any layout resumes from both.

To resume, load the weights, then call :func:`load_training_state` when the optimizer and the scheduler exist. Call
:func:`restore_position` last, just before the first batch is drawn, so that nothing in between (callbacks, an
evaluation) changes the state of the generators.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy as duplicate
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trainwright.arguments.errors import hidden
from trainwright.checkpoint.by_name import filled_groups
from trainwright.checkpoint.diskio import Sums, save_summed, single_checksum
from trainwright.checkpoint.gathered import replace_whole, save_whole
from trainwright.checkpoint.part import Piece
from trainwright.checkpoint.schedule import fitted
from trainwright.checkpoint.sharded import MODEL_SHARDS, OPTIMIZER_SHARDS, is_in_shards, read_optimizer, save_shards
from trainwright.checkpoint.staging import Copy, Stager, as_it_is, return_memory
from trainwright.checkpoint.store import MANIFEST
from trainwright.checkpoint.weights import accepts_state_dict, save_config, save_weights
from trainwright.checkpoint.zero import is_of_engine, save_engine
from trainwright.checkpoint.zero_names import optimizer_of_partitions, scaler_of_partitions
from trainwright.contract import UserError
from trainwright.data.epochs import Epochs
from trainwright.data.place import draws_alike, has_own_shards
from trainwright.devices.seeding import derived_seed, rng_state, seed_everything, set_rng_state
from trainwright.distributed.named_state import (
    model_state,
    names_in_order,
    numbered,
    optimizer_state,
    other_optimizer,
    parameters_in_order,
    parts_like,
)
from trainwright.integrations.peft import adapter_names

OPTIMIZER, SCHEDULER, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
NAMED_OPTIMIZER = "optimizer.bin"
"""accelerate's file of a whole optimizer under FSDP, by the names of the parameters."""
TRAINER_STATE = "trainer_state.json"
TRAINING_ARGS, PICKLED_ARGS = "training_args.json", "training_args.bin"
WRITING = threading.local()
"""Set while a method of the Trainer writes a piece, per thread: ``keeps``, whether this rank keeps all files, and
``own``, the names of those that it keeps in any case, because they hold its shards."""
SAVERS = {
    "_save_optimizer_and_scheduler": (OPTIMIZER, SCHEDULER),
    "_save_scaler": (SCALER,),
    "_save_rng_state": ("rng_state",),
}
"""Methods of the Trainer that a subclass may override -> the prefixes of the names of their files."""


class Snapshot(NamedTuple):
    """The pieces that this rank writes: at once, or later (from copies, or while training is paused)."""

    at_once: list[Piece]
    later: list[Piece]


def snapshot(trainer: Any, leader: bool = True, copy: Copy = as_it_is) -> Snapshot:
    """This rank's pieces of a checkpoint of ``trainer``, between two steps.

    Args:
        leader: Whether this rank also writes the files that all ranks share.
        copy: Copies the state that training changes, if training continues before ``later`` is written. Pieces that
            cannot be written from a copy are in ``at_once``: tokenizers, and models that can only save themselves.
    """
    if copy is as_it_is and trainer.args.device.type == "xla":
        copy = Stager().copy
    at_once: list[Piece] = []
    later: list[Piece] = []
    meeting: list[Piece] = []
    own = [name for name in ("save_model", "_save", *SAVERS) if trainer._overrides(name)]
    saves_model = not {"save_model", "_save"} & set(own)
    taken = tuple(stem for name in own for stem in SAVERS.get(name, ()))
    if own:
        meeting.append(partial(_save_by, _savers(trainer, own, leader)))
    if _saves_engine(trainer):
        meeting.append(partial(_save_engine, trainer))
    if trainer._strategy.sharded:
        return_memory()  # what a step needed, before a layer is put together
        if saves_model and _saves_whole(trainer):
            meeting.append(partial(save_whole, trainer.model, ranks=trainer.checkpoints.ranks))
        if leader and saves_model:
            at_once.append(partial(save_config, trainer.model))
    elif leader and saves_model:
        copies = copy is not as_it_is and accepts_state_dict(trainer.model)
        state = copy("model", trainer._strategy.state("model", trainer.model)) if copies else None
        (later if copies or copy is as_it_is else at_once).append(partial(save_weights, trainer.model, state=state))
    if leader:
        at_once.append(partial(_save_small_files if saves_model else _save_state, trainer))
    if not trainer.args.save_only_model:
        states = _training_state(trainer, leader, lambda name: not name.startswith(taken))
        later.append(partial(_save_all, {name: copy(name, state) for name, state in states.items()}))
    shards = {
        kind: copy(kind, state) for kind, state in shards_of(trainer, saves_model, OPTIMIZER not in taken).items()
    }
    meeting_later: list[Piece] = (
        [partial(save_shards, shards, group=trainer.checkpoints.apart().group)] if shards else []
    )
    if copy is as_it_is:
        meeting, meeting_later = [], [*meeting, *meeting_later]
    return Snapshot([*_in_turn(meeting), *at_once], [*_in_turn(meeting_later), *later])


def _in_turn(pieces: list[Piece]) -> list[Piece]:
    """One piece that writes all ``pieces``, in which ranks may communicate, one after the other.

    It comes first in its list, and so is written on the thread of the caller. If one fails, the others are written all
    the same, because the other ranks wait in them.
    """

    def write(folder: Path) -> Sums:
        errors: list[Exception] = []
        sums: Sums = {}
        for piece in pieces:
            try:
                sums |= piece(folder) or {}
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return sums

    return [write] if pieces else []


def saves_shards(trainer: Any) -> bool:
    """Whether checkpoints hold the model in shards; a model alone, or adapters, are saved for ``from_pretrained``."""
    strategy = trainer._strategy
    is_for_use = trainer.args.save_only_model or adapter_names(trainer.model)
    return strategy.sharded and not (strategy.whole_checkpoints or strategy.owns_checkpoints or is_for_use)


def _saves_whole(trainer: Any) -> bool:
    """Whether a checkpoint of a sharded model holds the model for ``from_pretrained``."""
    if trainer._strategy.owns_checkpoints:
        is_for_use = trainer.args.save_only_model or adapter_names(trainer.model)
        return bool(trainer._strategy.whole_checkpoints or is_for_use)
    return not saves_shards(trainer)


def _saves_engine(trainer: Any) -> bool:
    """Whether DeepSpeed's engine writes weights and optimizer."""
    strategy = trainer._strategy
    return strategy.owns_checkpoints and strategy.engine is not None and not trainer.args.save_only_model


def _save_engine(trainer: Any, folder: Path) -> Sums:
    schedule = trainer.lr_scheduler if hasattr(trainer.lr_scheduler, "state_dict") else None
    return save_engine(trainer._strategy.engine, folder, schedule, trained_alone=bool(adapter_names(trainer.model)))


def shards_of(trainer: Any, model: bool, optimizer: bool) -> dict[str, dict[str, Any]]:
    """The states that a checkpoint holds in shards: of the model, of the optimizer, of both, or none."""
    states: dict[str, dict[str, Any]] = {}
    if model and saves_shards(trainer):
        states[MODEL_SHARDS] = model_state(trainer.model)
    if optimizer and not trainer.args.save_only_model and _optimizer_in_shards(trainer):
        states[OPTIMIZER_SHARDS] = optimizer_state(trainer.model, trainer.optimizer)
    return states


def _optimizer_in_shards(trainer: Any) -> bool:
    strategy = trainer._strategy
    is_apart = strategy.sharded and not strategy.whole_checkpoints and not strategy.owns_checkpoints
    return is_apart and trainer.optimizer is not None


def _savers(trainer: Any, own: list[str], leader: bool) -> list[tuple[Callable[[str], None], bool]]:
    """The save methods that a subclass overrides, and whether this rank keeps their files.

    All ranks call them in the same order and on one thread, because they may use collectives.
    """
    savers: list[tuple[Callable[[str], None], bool]] = []
    if {"save_model", "_save"} & set(own):
        savers.append((partial(trainer.save_model, _internal_call=True), leader))
    if not trainer.args.save_only_model:
        savers += [(getattr(trainer, name), leader or name == "_save_rng_state") for name in SAVERS if name in own]
    return savers


def _save_by(savers: list[tuple[Callable[[str], None], bool]], folder: Path) -> None:
    own: set[str] = set()
    for save, keeps in savers:
        WRITING.keeps, WRITING.own = keeps, own
        try:
            save(str(folder))
        finally:
            del WRITING.keeps, WRITING.own
        if not keeps:
            for path in folder.iterdir():
                if path.name not in own:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_model_files(trainer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write what is needed to use the model elsewhere (weights, configuration, tokenizer), and its arguments.

    A sharded model is written by all ranks together.

    Args:
        weights: A ``state_dict`` to write instead of the model's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leads = trainer._may_write()
    if weights is None and trainer._strategy.sharded:
        _save_sharded_model(trainer, folder)
        if leads:
            save_config(trainer.model, folder)
    elif leads:
        save_weights(trainer.model, folder, weights)
    if leads:
        _save_small_files(trainer, folder, state=False)


def _save_sharded_model(trainer: Any, folder: Path) -> None:
    """Write the model for ``from_pretrained``; in a checkpoint, write it as the checkpoint does."""
    own = getattr(WRITING, "own", None)
    if own is None:
        replace_whole(trainer.model, folder, trainer.checkpoints.ranks)
    elif shards := shards_of(trainer, model=True, optimizer=False):
        save_shards(shards, folder, trainer.checkpoints.apart().group)
        own.update(shards)
    else:
        before = set(folder.iterdir())
        save_whole(trainer.model, folder, trainer.checkpoints.ranks)
        own.update(path.name for path in set(folder.iterdir()) - before)


def save_training_state(trainer: Any, folder: Path, stems: tuple[str, ...], leader: bool) -> None:
    """Write the files of optimizer, schedule, scaler and generators whose names begin with one of ``stems``."""
    folder.mkdir(parents=True, exist_ok=True)
    if OPTIMIZER in stems and (shards := shards_of(trainer, model=False, optimizer=True)):
        save_shards(shards, folder, trainer.checkpoints.apart().group)
        own: set[str] = getattr(WRITING, "own", set())
        own.update(shards)
    _save_all(_training_state(trainer, leader, lambda name: name.startswith(stems)), folder)


def _save_small_files(trainer: Any, folder: Path, state: bool = True) -> None:
    """The tokenizer, the arguments and, in a checkpoint, the trainer state."""
    processing = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    if processing is not None:
        processing.save_pretrained(folder)
    (folder / TRAINING_ARGS).write_text(arguments_as_json(trainer.args) + "\n", encoding="utf-8")
    if (pickled := _pickled(trainer.args)) is not None:
        (folder / PICKLED_ARGS).write_bytes(pickled)
    if state:
        _save_state(trainer, folder)


def arguments_as_json(args: Any) -> str:
    """The arguments as JSON for a checkpoint; an object with ``to_dict`` becomes its dict."""
    return json.dumps(args.to_dict(), indent=2, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


def _pickled(args: Any) -> bytes | None:
    """The arguments as ``torch.save`` writes them, with tokens hidden; None if their class cannot be pickled."""
    copied, file = duplicate(args), io.BytesIO()
    for name, value in vars(copied).items():
        if name.endswith("_token") and value is not None:
            setattr(copied, name, hidden(name))
    try:
        torch.save(copied, file)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return file.getvalue()


def _save_state(trainer: Any, folder: Path) -> None:
    trainer.state.save_to_json(folder / TRAINER_STATE)


def _training_state(trainer: Any, leader: bool, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """File name -> its contents, of the ``wanted`` files that this rank writes; without an optimizer in shards."""
    parts = {name: part for name, part in _parts(trainer).items() if wanted(name)}
    is_apart = _optimizer_in_shards(trainer) or trainer._strategy.owns_checkpoints
    optimizer = None if is_apart else parts.get(OPTIMIZER)
    gathers = trainer._strategy.sharded and optimizer is not None  # all ranks take part in it
    whole = trainer._strategy.state("optimizer", optimizer) if gathers or (leader and optimizer is not None) else None
    states = {name: part.state_dict() for name, part in parts.items() if name != OPTIMIZER} if leader else {}
    states |= {OPTIMIZER: whole} if leader and whole is not None else {}
    states |= _states_of_rank(trainer)
    return {name: state for name, state in states.items() if wanted(name)}


def _states_of_rank(trainer: Any) -> dict[str, Any]:
    states: dict[str, Any] = {_of_rank("rng_state", "pth", trainer): rng_state()}
    position = None if trainer._epochs is None else trainer._epochs.state_dict()
    if position is not None:
        horizon = getattr(getattr(trainer, "_loop", None), "horizon", None)
        position["step"] = None if horizon is None else horizon.total_batch_size
        states[_of_rank("data_state", "pt", trainer)] = position
    return states


def _save_all(states: dict[str, Any], folder: Path) -> Sums:
    sums: Sums = {}
    with single_checksum():
        for name, state in states.items():
            save_summed(state, folder / name, sums)
    return sums


def _parts(trainer: Any) -> dict[str, Any]:
    """File name -> the object whose ``state_dict`` it holds, for those that the run has."""
    scaler = getattr(trainer, "scaler", None) or getattr(trainer.accelerator, "scaler", None)
    parts = {OPTIMIZER: trainer.optimizer, SCHEDULER: trainer.lr_scheduler, SCALER: scaler}
    return {name: part for name, part in parts.items() if part is not None}


def _of_rank(stem: str, suffix: str, trainer: Any) -> str:
    args = trainer.args
    return f"{stem}.{suffix}" if args.world_size <= 1 else f"{stem}_{args.process_index}.{suffix}"


def missing_state(trainer: Any, folder: Path) -> list[str]:
    """The parts of the run's state that the checkpoint in ``folder`` lacks, as text for a message."""
    scaler = getattr(trainer, "scaler", None)
    parts = {OPTIMIZER: "the optimizer", SCHEDULER: "the schedule", TRAINER_STATE: "the count of steps"}
    parts |= {} if scaler is None else {SCALER: "the scaler"}
    elsewhere = {OPTIMIZER} if has_optimizer(folder) else set()
    elsewhere |= {SCALER} if is_of_engine(folder) else set()
    absent = [part for name, part in parts.items() if not (folder / name).is_file() and name not in elsewhere]
    return absent if any(folder.glob("rng_state*.pth")) else [*absent, "the random generators"]


def load_training_state(trainer: Any, folder: Path, names: tuple[str, ...] = (OPTIMIZER, SCHEDULER, SCALER)) -> None:
    """Load the optimizer, the scheduler and the scaler, if saved. The weights must be loaded before."""
    folder = Path(folder)
    for name, part in _parts(trainer).items():
        if name == OPTIMIZER and trainer._strategy.owns_checkpoints:
            continue
        if name == OPTIMIZER and name in names and has_optimizer(folder):
            _load_optimizer(trainer, folder)
        elif name in names and (folder / name).is_file():
            with _explained(folder / name):
                saved = _load(folder / name)
                part.load_state_dict(_fitted(trainer, saved, folder) if name == SCHEDULER else saved)
        elif name == SCALER and name in names and is_of_engine(folder):
            part.load_state_dict(scaler_of_partitions(folder, part.state_dict()))


def _fitted(trainer: Any, saved: Any, folder: Path) -> Any:
    """The state of a schedule, if other groups are empty here than in the run that saved it."""
    own, groups = trainer.lr_scheduler.state_dict(), trainer.optimizer.param_groups
    if not has_optimizer(folder) or len(saved.get("base_lrs", ())) in (0, len(groups)):
        return saved
    there = range(len(saved["base_lrs"])) if is_of_engine(folder) else filled_groups(folder)
    is_engine = trainer._strategy.owns_checkpoints  # whose optimizer holds no parameters
    here = [number for number, group in enumerate(groups) if is_engine or group["params"]]
    return fitted(saved, there, own, here)


def has_optimizer(folder: Path) -> bool:
    """Whether a checkpoint holds the state of the optimizer, in any of the forms that are known."""
    has_file = any((folder / name).is_file() for name in (OPTIMIZER, NAMED_OPTIMIZER))
    return has_file or is_in_shards(folder, OPTIMIZER_SHARDS) or is_of_engine(folder)


def _load_optimizer(trainer: Any, folder: Path) -> None:
    """Load the optimizer, or this rank's shards of it, whether the checkpoint holds it whole or in shards."""
    optimizer = trainer.optimizer
    own_settings = [set(group) for group in optimizer.param_groups]
    _restore_optimizer(trainer, folder)
    for own, group in zip(own_settings, optimizer.param_groups, strict=False):
        if lacking := sorted(own - set(group)):
            raise other_optimizer(folder, lacking)


def _restore_optimizer(trainer: Any, folder: Path) -> None:
    model, optimizer = trainer.model, trainer.optimizer
    if is_of_engine(folder):
        state = numbered(model, optimizer, optimizer_of_partitions(model, optimizer, folder))
        trainer._strategy.load("optimizer", optimizer, state)
        return
    if is_in_shards(folder, OPTIMIZER_SHARDS):
        with _explained(folder / OPTIMIZER_SHARDS):
            parameters = dict(zip(names_in_order(model, optimizer), parameters_in_order(optimizer), strict=True))
            state = numbered(model, optimizer, read_optimizer(parameters, folder))
            trainer._strategy.load("optimizer", optimizer, state)
        return
    file = folder / (OPTIMIZER if (folder / OPTIMIZER).is_file() else NAMED_OPTIMIZER)
    with _explained(file):
        state = _load(file, mapped=trainer._strategy.sharded)
        if file.name == NAMED_OPTIMIZER:
            state = numbered(model, optimizer, state)
        if trainer._strategy.sharded:
            state = parts_like(list(parameters_in_order(optimizer)), state)
        trainer._strategy.load("optimizer", optimizer, state)


def restore_position(
    trainer: Any,
    folder: Path,
    epochs: Epochs | None = None,
    load_rng: Callable[[str], None] | None = None,
    start: int | None = None,
) -> None:
    """Restore the position in the data and the random generators. Call it just before the first ``batches(...)``.

    Args:
        load_rng: Loads the state of the generators from the folder; by default :func:`load_rng_state`.
        start: The sample to begin at, if that is not the first of a batch.

    A checkpoint of another world size has no state for every rank. The order of the samples is then that of rank 0, the
    generators are seeded from (seed, step, rank), and a warning is logged; ``full_determinism`` raises instead.
    """
    folder = Path(folder)
    position = saved_position(trainer, folder) if epochs is not None else None
    is_alike = world_size_of(folder) in (trainer.args.world_size, None)
    goes_on = True
    if epochs is not None and position is not None:
        goes_on = draws_alike(epochs.loader, position["generator"])
        if not is_alike and (position.get("own_shards") or has_own_shards(epochs.loader)):
            position["dataset"] = None
    if epochs is not None and (position is not None or start is not None):
        epochs.load_state_dict({**(position or {"epoch": None, "generator_now": None}), "start": start})
    if is_alike:
        (load_rng or partial(load_rng_state, trainer))(str(folder))
    else:
        _reseed(trainer, folder, goes_on)


def saved_position(trainer: Any, folder: Path) -> dict[str, Any] | None:
    """How far this rank had read the data; with another number of ranks, how far the first one had."""
    own = folder / _of_rank("data_state", "pt", trainer)
    is_own = own.is_file() and world_size_of(folder) in (trainer.args.world_size, None)
    file = own if is_own else next(iter(sorted(folder.glob("data_state*.pt"))), None)
    if file is None:
        return None
    with _explained(file):
        position: dict[str, Any] = _load(file)
        return position


def load_rng_state(trainer: Any, folder: str) -> None:
    """Load the states of this rank's generators, if the checkpoint has them."""
    file = Path(folder) / _of_rank("rng_state", "pth", trainer)
    if file.is_file():
        with _explained(file):
            set_rng_state(_load(file))


def world_size_of(folder: Path) -> int | None:
    """How many ranks wrote a checkpoint; None if it has no random state.

    A local disk only holds the files of its own node's ranks, so the manifest takes precedence.
    """
    if (folder / MANIFEST).is_file() and any(folder.glob("rng_state*.pth")):
        size: int = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["worldSize"]
        return size
    if (folder / "rng_state.pth").is_file():
        return 1
    return len(list(folder.glob("rng_state_*.pth"))) or None


def data_size_of(folder: Path) -> int | None:
    """How many parts the data had in the run that wrote a checkpoint; None if it has no random state."""
    try:
        size: int | None = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("dataSize")
    except FileNotFoundError:
        size = None
    return size if size is not None else world_size_of(folder)  # older releases had as many parts as ranks


def _reseed(trainer: Any, folder: Path, has_same_order: bool) -> None:
    args, before = trainer.args, world_size_of(folder)
    if args.full_determinism:
        raise UserError(
            f"{folder}: was written by {before} processes and this run has {args.world_size}; full_determinism needs "
            f"{before} processes again for the same results"
        )
    order = "continues" if has_same_order else "of this epoch is drawn again"
    warnings.warn(
        f"{folder}: was written by {before} processes, this run has {args.world_size}: the sample order {order}, but "
        "every process draws new random numbers, so the result is not that of an uninterrupted run",
        stacklevel=3,
    )
    seed_everything(derived_seed(args.seed, trainer.state.global_step, trainer._strategy.data_rank))


def _load(path: Path, mapped: bool = False) -> Any:
    """Read a file. With ``mapped``, only what is used of its tensors gets into memory."""
    with torch.serialization.safe_globals(_numpy_types()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _numpy_types() -> list[Any]:
    """The types in the pickled state of NumPy's generator."""
    from numpy._core import multiarray

    return [multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: does not match this run or is damaged ({reason}); resume from another checkpoint"
        ) from error
