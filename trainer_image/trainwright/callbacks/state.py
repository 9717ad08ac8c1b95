"""The state of a run (``TrainerState``, saved with a checkpoint) and what it does next (``TrainerControl``)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from trainwright.contract import UserError, strict_json


class ExportableState:
    """Base for callbacks whose state is saved with a checkpoint: JSON values only, no pickles."""

    def state(self) -> dict[str, Any]:
        """``{"args": keyword arguments of the constructor, "attributes": attributes that are set afterwards}``."""
        raise NotImplementedError(f"{type(self).__name__} must define state() to be saved with a checkpoint")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Any:
        instance = cls(**state["args"])
        for name, value in state["attributes"].items():
            setattr(instance, name, value)
        return instance


@dataclass
class TrainerControl(ExportableState):
    """Switches that callbacks set and the loop reads. The loop resets all except ``should_training_stop``."""

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False

    def _new_training(self) -> None:
        self.should_training_stop = False

    def _new_epoch(self) -> None:
        self.should_epoch_stop = False

    def _new_step(self) -> None:
        self.should_save = self.should_evaluate = self.should_log = False

    def state(self) -> dict[str, Any]:
        return {"args": asdict(self), "attributes": {}}


@dataclass
class TrainerState:
    """The state of a run. A step is an optimizer step, regardless of the number of its micro-batches.

    ``epoch`` includes fractions of an epoch. ``total_flos`` is a float, because it would overflow the integers of other
    languages. ``stateful_callbacks`` maps a class name to the state (or states) of the callbacks of that class.
    """

    epoch: float | None = 0
    global_step: int = 0
    max_steps: int = 0
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    train_batch_size: int | None = None
    num_train_epochs: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0
    log_history: list[dict[str, float]] = None  # type: ignore[assignment]
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    stateful_callbacks: Any = None

    local_tokens: ClassVar[int] = 0
    """Input tokens that this rank has trained on since ``train`` was called. Counted on the host from shapes, never
    synchronised and never saved. A progress report multiplies it by the world size."""

    def __post_init__(self) -> None:
        if self.log_history is None:
            self.log_history = []
        if not isinstance(self.stateful_callbacks, dict):
            self.stateful_callbacks = export_states(self.stateful_callbacks or [])

    def save_to_json(self, json_path: str | os.PathLike[str]) -> None:
        """Write this state as indented JSON with sorted keys; numbers that are not finite become null."""
        text = json.dumps(strict_json(asdict(self)), indent=2, sort_keys=True, allow_nan=False)
        Path(json_path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load_from_json(cls, json_path: str | os.PathLike[str]) -> TrainerState:
        """Raises :class:`UserError` if the file is not a trainer state. Keys of other versions are ignored."""
        try:
            data = json.loads(Path(json_path).read_text(encoding="utf-8"))
            state = cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})
            state.log_history = [_with_nan(entry) for entry in state.log_history]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{json_path}: not a trainer state ({error}); resume from another checkpoint or delete this one"
            ) from error
        return state

    def compute_steps(self, args: Any, max_steps: int) -> None:
        """Copy the intervals of ``args``; one below 1 is a fraction of ``max_steps``."""
        for kind in ("logging_steps", "eval_steps", "save_steps"):
            interval = getattr(args, kind)
            if interval is not None:
                setattr(self, kind, math.ceil(max_steps * interval) if interval < 1 else interval)

    def init_training_references(self, trainer: Any, max_steps: int, num_train_epochs: int, trial: Any) -> None:
        self.is_hyper_param_search = trial is not None
        if trainer.hp_name is not None and trial is not None:
            self.trial_name = trainer.hp_name(trial)
        params = getattr(trial, "params", trial)  # a trial of optuna, or the values themselves
        self.trial_params = None if params is None else dict(params)
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        self.is_local_process_zero = trainer.is_local_process_zero()
        self.is_world_process_zero = trainer.is_world_process_zero()


def _with_nan(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry with NaN restored, which JSON lacks."""
    return {name: math.nan if value is None else value for name, value in entry.items()}


def exports_state(callback: Any) -> bool:
    """Whether a callback's state is saved: it has the two methods, of our base class or that of transformers."""
    return callable(getattr(callback, "state", None)) and callable(getattr(type(callback), "from_state", None))


def export_states(callbacks: list[Any]) -> dict[str, Any]:
    """Class name -> state; a list of states if several callbacks are of one class."""
    states: dict[str, Any] = {}
    for callback in callbacks:
        if not exports_state(callback):
            raise TypeError(f"{type(callback).__name__} has no state() and from_state(): inherit ExportableState")
        name, state = type(callback).__name__, callback.state()
        if name not in states:
            states[name] = state
        elif isinstance(states[name], list):
            states[name].append(state)
        else:
            states[name] = [states[name], state]
    return states
