"""Callbacks: what happens at the events of a run, and the handler that calls only those who listen.

An event has a listener when the callback's class defines a method for it other than the empty one of the base class,
ours or that of transformers. An event without listeners costs the loop one look at an empty tuple.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from trainwright.callbacks.state import TrainerControl, TrainerState
from trainwright.contract import UserError

if TYPE_CHECKING:
    from trainwright.arguments import TrainingArguments


logger = logging.getLogger(__name__)


class TrainerCallback:
    """Base class. Each event gets ``(args, state, control, **kwargs)`` and may return the control it changed.

    ``kwargs`` holds model, processing_class, optimizer, lr_scheduler, train_dataloader and eval_dataloader, and
    ``logs`` or ``metrics`` where the event has them.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """The Trainer is constructed."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Everything is prepared; the first step comes next."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Training is over, the best model loaded if that was asked for."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A pass over the training set begins."""

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A pass over the training set ended."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A global batch is about to be computed: one or more micro-batches."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Gradients are complete and clipped; the optimizer steps next."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """The optimizer stepped; the gradients are still there."""

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A micro-batch is done that is not the last of its global batch."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A step is done and counted."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """An evaluation is done; ``metrics`` has its result."""

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> TrainerControl | None:
        """A prediction is done."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A checkpoint is complete on disk."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """``logs`` was added to the log history."""

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A batch of an evaluation or prediction is done."""

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """The model is about to be pushed to the hub."""


EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))

# What a switch is reset by: the handler's method for the event, before it asks the listeners.
_RESETS = {
    "on_train_begin": ("should_training_stop",),
    "on_epoch_begin": ("should_epoch_stop",),
    "on_step_begin": ("should_log", "should_evaluate", "should_save"),
    "on_evaluate": ("should_evaluate",),
    "on_save": ("should_save",),
    "on_log": ("should_log",),
}


def listens(callback: Any, event: str) -> bool:
    """Whether ``callback`` does anything at ``event``."""
    method = getattr(callback, event, None)
    return method is not None and getattr(method, "__qualname__", "") != f"TrainerCallback.{event}"


class CallbackHandler(TrainerCallback):
    """The callbacks of a Trainer in their order, and for each event those that listen.

    The run calls the method of each event, which resets the switches of the event and then goes to ``call_event``; a
    subclass may have its own of either.
    """

    def __init__(
        self, callbacks: Iterable[Any], model: Any, processing_class: Any, optimizer: Any, lr_scheduler: Any
    ) -> None:
        self.callbacks: list[Any] = []
        self._listeners: dict[str, tuple[Any, ...]] = {}
        self._asked: list[Any] | None = None
        self.model = model
        self.processing_class = processing_class
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.train_dataloader: Any = None
        self.eval_dataloader: Any = None
        for callback in callbacks:
            self.add_callback(callback)
        if not any("DefaultFlowCallback" in {base.__name__ for base in type(c).__mro__} for c in self.callbacks):
            logger.warning(
                "no DefaultFlowCallback among the callbacks (%s): nothing will log, evaluate, save or stop the run",
                self.callback_list,
            )

    def add_callback(self, callback: Any) -> None:
        """Append a callback, or an instance of a callback class."""
        added = callback() if isinstance(callback, type) else callback
        if type(added) in {type(present) for present in self.callbacks}:
            logger.warning("a %s is already among the callbacks; now there are two", type(added).__name__)
        self.callbacks.append(added)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return the first callback that is, or is an instance of, ``callback``; None without one."""
        for present in self.callbacks:
            if _is_of(present, callback) if isinstance(callback, type) else present == callback:
                self.callbacks.remove(present)
                return present
        return None

    def remove_callback(self, callback: Any) -> None:
        """As :meth:`pop_callback`; an instance that is not there raises ValueError."""
        if self.pop_callback(callback) is None and not isinstance(callback, type):
            raise ValueError(f"{type(callback).__name__} is not among the callbacks: {self.callback_list}")

    @property
    def listeners(self) -> dict[str, tuple[Any, ...]]:
        """Who listens to which event; found out anew where somebody has changed ``callbacks`` since."""
        if self._asked != self.callbacks:
            self._ask()
        return self._listeners

    def _ask(self) -> None:
        self._asked = list(self.callbacks)
        self._listeners = {
            event: tuple(callback for callback in self.callbacks if listens(callback, event)) for event in EVENTS
        }

    @property
    def callback_list(self) -> str:
        return ", ".join(type(callback).__name__ for callback in self.callbacks)

    def call_event(self, event: str, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Ask every listener in order; each sees the control that the one before it returned."""
        if self._asked != self.callbacks:  # as :attr:`listeners`, four times a step
            self._ask()
        for callback in self._listeners[event]:
            changed = getattr(callback, event)(
                args,
                state,
                control,
                model=self.model,
                processing_class=self.processing_class,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                **kwargs,
            )
            if changed is not None:
                control = changed if hasattr(changed, "should_training_stop") else _refuse(callback, event, changed)
        return control


def _refuse(callback: Any, event: str, returned: Any) -> NoReturn:
    raise UserError(
        f"callbacks: {type(callback).__name__}.{event} returned {type(returned).__name__}; "
        "return the control that it is given, or nothing"
    )


def _is_of(present: Any, kind: type) -> bool:
    """Whether a callback is of a class; those of transformers stand for ours of the same name, in scripts that mix."""
    names = {base.__name__ for base in type(present).__mro__} if kind.__module__.startswith("transformers.") else ()
    return isinstance(present, kind) or kind.__name__ in names


def _dispatching(event: str) -> Any:
    """The handler's own method for an event, with what the event tells as its last argument."""
    switches = _RESETS.get(event, ())

    def plain(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        for switch in switches:
            setattr(control, switch, False)
        return self.call_event(event, args, state, control, **kwargs)

    def with_metrics(self: Any, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> Any:
        return plain(self, args, state, control, metrics=metrics, **kwargs)

    def with_logs(self: Any, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> Any:
        return plain(self, args, state, control, logs=logs, **kwargs)

    with_more: dict[str, Any] = {"on_evaluate": with_metrics, "on_predict": with_metrics, "on_log": with_logs}
    dispatch = with_more.get(event, plain)
    dispatch.__name__, dispatch.__qualname__ = event, f"CallbackHandler.{event}"
    return dispatch


for _event in EVENTS:
    setattr(CallbackHandler, _event, _dispatching(_event))


def restore_states(handler: CallbackHandler, control: TrainerControl, states: dict[str, Any]) -> TrainerControl:
    """Put callbacks, and the control, back into the states that a checkpoint holds, by the names of their classes."""
    for name, stored in states.items():
        present = [c for c in [*handler.callbacks, control] if type(c).__name__ == name]
        if not present:
            logger.warning("the checkpoint has the state of a %s, which is not among the callbacks", name)
        for callback, state in zip(present, stored if isinstance(stored, list) else [stored], strict=False):
            restored = type(callback).from_state(state)
            if callback is control:
                control = restored
            else:
                handler.callbacks[handler.callbacks.index(callback)] = restored
    return control
