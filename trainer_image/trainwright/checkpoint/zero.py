"""Checkpoints of DeepSpeed's engine: ``global_stepN/``, ``latest`` and ``zero_to_fp32.py``, as Hugging Face's Trainer.

The engine flattens all parameters and cuts them into one partition for each rank, and reads them in the same layout
alone. For another stage or number of ranks, see :mod:`trainwright.checkpoint.zero_layouts`.

The files are pickles with classes of DeepSpeed. They are read with those classes and no others, so a checkpoint cannot
run code. Every rank reads and writes its files outside of the engine's collectives, so an error on one rank can be
reported to the others.
"""

from __future__ import annotations

import enum
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trainwright.checkpoint.diskio import Sums, save_summed
from trainwright.contract import UserError
from trainwright.distributed.ranks import Ranks

LATEST, SCRIPT = "latest", "zero_to_fp32.py"
_FOLDER = re.compile(r"^global_step\d+$")
_OPTIMIZER = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_?optim_states\.pt$")
MODEL = "mp_rank_00_model_states.pt"


class Written(NamedTuple):
    """How the engine that wrote a checkpoint was spread: over how many ranks, and whether parameters were (ZeRO 3)."""

    ranks: int
    parameters: bool


def tag_of(folder: Path) -> str | None:
    """The name of the engine's folder in a checkpoint; None if it has none."""
    try:
        tag = (folder / LATEST).read_text(encoding="utf-8").strip()
    except OSError:
        tag = next((path.name for path in sorted(folder.glob("global_step*")) if path.is_dir()), "")
    return tag if _FOLDER.match(tag) and (folder / tag).is_dir() else None


def is_of_engine(folder: Path) -> bool:
    """Whether DeepSpeed's engine wrote weights and optimizer of a checkpoint."""
    return tag_of(folder) is not None


def written(folder: Path) -> Written:
    """How the engine that wrote a checkpoint was spread, by the names of its files."""
    names = [path.name for path in (folder / (tag_of(folder) or "")).iterdir()]
    return Written(sum(bool(_OPTIMIZER.search(name)) for name in names), MODEL not in names)


def is_same_layout(folder: Path, stage: int, ranks: int) -> bool:
    """Whether an engine of this ``stage`` on so many ``ranks`` reads the files of a checkpoint as they are."""
    return written(folder) == Written(ranks, stage == 3)


def optimizer_files(place: Path) -> list[Path]:
    """The files of the optimizer in the engine's folder, by rank."""
    found = {int(match[1]): path for path in place.iterdir() if (match := _OPTIMIZER.search(path.name))}
    return [found[rank] for rank in sorted(found)]


def shapes_of(model_state: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> shape of the trained parameters, in the order in which they are flattened."""
    return {name: shape for group in model_state.get("param_shapes") or [] for name, shape in group.items()}


# -- writing


def save_engine(engine: Any, folder: Path, schedule: Any, trained_alone: bool = False) -> Sums:
    """Write this rank's files of the engine below ``folder``; all ranks call it together, each with its own folder.

    Returns the sums of the files.

    Args:
        schedule: Its state is saved with the engine's; None for one without a state.
        trained_alone: Leave out parameters that are not trained (those under adapters).

    Raises:
        OSError: This rank could not write, but has taken part in all that the others needed.
    """
    sums: Sums = {}
    files = _writer(sums)
    with _using(engine, files, schedule):
        engine.save_checkpoint(str(folder), save_latest=False, exclude_frozen_parameters=trained_alone)
    if files.failure is not None:
        raise files.failure
    if engine.global_rank == 0:
        _write_beside(engine, folder)
    return sums


def _write_beside(engine: Any, folder: Path) -> None:
    from deepspeed.utils import zero_to_fp32

    (folder / LATEST).write_text(f"global_step{engine.global_steps}", encoding="utf-8")
    shutil.copyfile(str(zero_to_fp32.__file__), folder / SCRIPT)


@contextmanager
def _using(engine: Any, files: Any, schedule: Any) -> Iterator[None]:
    """A context in which the engine reads and writes by ``files``, and its state includes that of ``schedule``."""
    former = engine.checkpoint_engine
    engine.checkpoint_engine, engine.lr_scheduler = files, schedule
    vars(engine)["_copy_recovery_script"] = lambda folder: None
    try:
        yield
    finally:
        engine.checkpoint_engine, engine.lr_scheduler = former, None
        del vars(engine)["_copy_recovery_script"]


def _writer(sums: Sums) -> Any:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    class Writer(TorchCheckpointEngine):  # type: ignore[misc]
        """Keeps an error for later, because the other ranks wait within the engine."""

        failure: Exception | None = None

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            self._keep(lambda: Path(path).mkdir(parents=True, exist_ok=exist_ok))

        def save(self, state_dict: Any, path: str) -> None:
            self._keep(lambda: save_summed(state_dict, Path(path), sums))

        def _keep(self, write: Callable[[], None]) -> None:
            if self.failure is None:
                try:
                    write()
                except Exception as error:
                    self.failure = error

    return Writer(None)


# -- reading


def load_engine(engine: Any, folder: Path, schedule: Any, ranks: Ranks, strict: bool = True) -> None:
    """Restore the engine: weights, optimizer, and the schedule if its state was saved; all ranks call it together.

    Args:
        strict: Every parameter must be there; false where frozen ones under adapters were left out.

    Raises:
        UserError: A file is missing or damaged, or is of another model; the same on all ranks.
    """
    tag = tag_of(folder)
    assert tag is not None
    reader = _reader()
    paths = [*engine._get_all_ckpt_names(str(folder), tag)[:1], engine._get_zero_ckpt_name(str(folder), tag)]
    ranks.agree(lambda: reader.read_ahead(paths))
    ranks.agree(lambda: check_names(engine.module, folder, shapes_of(reader.known[paths[0]])))
    has_schedule = schedule is not None and bool(reader.known[paths[0]].get("lr_scheduler"))
    with _using(engine, reader, schedule):
        engine.load_checkpoint(str(folder), tag, load_module_strict=strict, load_lr_scheduler_states=has_schedule)


def check_names(model: nn.Module, folder: Path, saved: Mapping[str, Sequence[int]]) -> None:
    """Raises :class:`UserError` for the weights of another model, before any are copied.

    Args:
        saved: Name -> shape of the parameters that were trained.
    """
    from trainwright.checkpoint.sharded import another_model

    own = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    problems = [f"missing {name}" for name in own if name not in saved]
    problems += [f"unexpected {name}" for name in saved if name not in own]
    problems += [
        f"{name} is {tuple(saved[name])} there and {shape} here"
        for name, shape in own.items()
        if name in saved and tuple(saved[name]) != shape
    ]
    if problems and saved:
        raise another_model(folder, problems)


def _reader() -> Any:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    class Reader(TorchCheckpointEngine):  # type: ignore[misc]
        """Hands out what was read before the engine's collectives began."""

        def __init__(self) -> None:
            super().__init__(None)
            self.known: dict[str, Any] = {}

        def read_ahead(self, paths: Sequence[str]) -> None:
            self.known = {path: read(Path(path)) for path in paths}

        def load(self, path: str, map_location: Any = None) -> Any:
            found = self.known.get(path)
            return read(Path(path)) if found is None else found

    return Reader()


def read(path: Path, mapped: bool = False) -> Any:
    """Read a file of the engine. Raises :class:`UserError` if it is missing or damaged, or holds other classes.

    Args:
        mapped: Only what is used of the tensors gets into memory; DeepSpeed's own classes are not needed.
    """
    try:
        with torch.serialization.safe_globals(_STAND_INS if mapped else _classes()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise UserError(
            f"{path.parent.parent}: {path.name} is missing; resume with the number format and the stage that it was "
            "written with, or from another checkpoint"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or holds more than values of DeepSpeed"
        raise UserError(f"{path}: cannot be read ({reason}); resume from another checkpoint") from error


def _classes() -> list[Any]:
    """The classes of DeepSpeed that its checkpoints hold, all of them plain data."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler, ZeroStageEnum, fragment_address]


class _Plain:
    """Stands for an object of DeepSpeed whose values are not needed."""

    def __init__(self, *_: Any) -> None:
        pass


class _Stage(enum.IntEnum):
    """Stands for DeepSpeed's enumeration of the stages."""

    DISABLED, OPTIMIZER, GRADIENTS, WEIGHTS = range(4)


_STAND_INS: list[Any] = [
    (_Plain, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Plain, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Plain, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]
