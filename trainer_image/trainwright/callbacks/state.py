"""Where a run stands (``TrainerState``, which a checkpoint keeps) and what it shall do next (``TrainerControl``)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from trainwright.contract import UserError, strict_json


class ExportableState:
    """For callbacks whose state is saved with a checkpoint: JSON values only, never pickles."""

    def state(self) -> dict[str, Any]:
        """``{"args": keyword arguments of the constructor, "attributes": what is set afterwards}``."""
        raise NotImplementedError(f"{type(self).__name__} must define state() to be saved with a checkpoint")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Any:
        instance = cls(**state["args"])
        for name, value in state["attributes"].items():
            setattr(instance, name, value)
        return instance


@dataclass
class TrainerControl(ExportableState):
    """Switches that callbacks set and the loop obeys. Each, but for ``should_training_stop``, is reset by the loop."""

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
    """Where a run stands. A step is an optimizer step, however many micro-batches are accumulated in it.

    ``epoch`` counts whole and part epochs; ``total_flos`` is a float, as it overflows integers of other languages;
    ``stateful_callbacks`` maps a class name to the state (or states) of the callbacks of that class.
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
    """Tokens of input that this rank has trained on since ``train`` was called. Counted on the host from shapes,
    never synchronised and never saved: times the world size it is what a progress report calls tokens."""

    def __post_init__(self) -> None:
        if self.log_history is None:
            self.log_history = []
        if not isinstance(self.stateful_callbacks, dict):
            self.stateful_callbacks = export_states(self.stateful_callbacks or [])

    def save_to_json(self, json_path: str | os.PathLike[str]) -> None:
        """Write this state as indented JSON with sorted keys; null stands for numbers that are not finite."""
        text = json.dumps(strict_json(asdict(self)), indent=2, sort_keys=True, allow_nan=False)
        Path(json_path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load_from_json(cls, json_path: str | os.PathLike[str]) -> TrainerState:
        """Raises :class:`UserError` when the file is no trainer state. Keys of other versions are passed over."""
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
        """Take over the intervals of ``args``; one below 1 is a share of ``max_steps``."""
        for kind in ("logging_steps", "eval_steps", "save_steps"):
            interval = getattr(args, kind)
            if interval is not None:
                setattr(self, kind, math.ceil(max_steps * interval) if interval < 1 else interval)

    def init_training_references(self, trainer: Any, max_steps: int, num_train_epochs: int, trial: Any) -> None:
        self.trial_params = None
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        self.is_local_process_zero = trainer.is_local_process_zero()
        self.is_world_process_zero = trainer.is_world_process_zero()


def _with_nan(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry as it was before JSON, which has no NaN, took it away."""
    return {name: math.nan if value is None else value for name, value in entry.items()}


def exports_state(callback: Any) -> bool:
    """Whether a callback's state is saved: ours or transformers', recognised by the two methods."""
    return callable(getattr(callback, "state", None)) and callable(getattr(type(callback), "from_state", None))


def export_states(callbacks: list[Any]) -> dict[str, Any]:
    """Class name -> state; a list of states where several callbacks are of one class."""
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
