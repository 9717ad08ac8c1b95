"""Callbacks for the events of a run, and the handler, which calls only the callbacks that listen to an event.

A callback listens to an event if its class overrides the empty method of the base class (ours or that of transformers).
An event without listeners costs the loop only a lookup of an empty tuple.
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
    ``logs`` or ``metrics`` if the event has them.
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
        """Training has ended; the best model is loaded if ``load_best_model_at_end`` is set."""

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
        """The optimizer has stepped; the gradients are not cleared yet."""

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """A micro-batch is done, but not the last of its global batch."""

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

# Event -> the switches that the handler resets before it calls the listeners.
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
    """The callbacks of a Trainer in their order, and the listeners of each event.

    The run calls the method of an event, which resets the event's switches and then calls ``call_event``. A subclass
    may override either.
    """

    def __init__(
        self, callbacks: Iterable[Any], model: Any, processing_class: Any, optimizer: Any, lr_scheduler: Any
    ) -> None:
        self.callbacks: list[Any] = []
        self._listeners: dict[str, tuple[Any, ...]] = {}
        self._scanned: list[Any] | None = None
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
                "the callbacks (%s) include no DefaultFlowCallback: nothing will log, evaluate, save or stop the run",
                self.callback_list,
            )

    def add_callback(self, callback: Any) -> None:
        """Append a callback, or an instance of a callback class."""
        added = callback() if isinstance(callback, type) else callback
        if type(added) in {type(present) for present in self.callbacks}:
            logger.warning("there is already a %s; now there are two", type(added).__name__)
        self.callbacks.append(added)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return the first callback that is, or is an instance of, ``callback``; None without one."""
        for present in self.callbacks:
            if _is_instance(present, callback) if isinstance(callback, type) else present == callback:
                self.callbacks.remove(present)
                return present
        return None

    def remove_callback(self, callback: Any) -> None:
        """Like :meth:`pop_callback`, but raises ValueError for an instance that is not registered."""
        if self.pop_callback(callback) is None and not isinstance(callback, type):
            raise ValueError(f"{type(callback).__name__} is not one of the callbacks: {self.callback_list}")

    @property
    def listeners(self) -> dict[str, tuple[Any, ...]]:
        """The listeners of each event; updated when ``callbacks`` has changed."""
        if self._scanned != self.callbacks:
            self._scan()
        return self._listeners

    def _scan(self) -> None:
        self._scanned = list(self.callbacks)
        self._listeners = {
            event: tuple(callback for callback in self.callbacks if listens(callback, event)) for event in EVENTS
        }

    @property
    def callback_list(self) -> str:
        return ", ".join(type(callback).__name__ for callback in self.callbacks)

    def call_event(self, event: str, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Call every listener in order; each gets the control that the previous one returned."""
        if self._scanned != self.callbacks:  # inlined from :attr:`listeners`, because it runs four times a step
            self._scan()
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
        "return the control that it receives, or nothing"
    )


def _is_instance(present: Any, kind: type) -> bool:
    """Whether a callback is of a class. A class of transformers also matches ours of the same name."""
    names = {base.__name__ for base in type(present).__mro__} if kind.__module__.startswith("transformers.") else ()
    return isinstance(present, kind) or kind.__name__ in names


def _dispatching(event: str) -> Any:
    """The handler's method for an event; its last argument is what the event brings, metrics or logs."""
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
    """Restore the states of the callbacks and of the control from a checkpoint, by class name."""
    for name, stored in states.items():
        present = [c for c in [*handler.callbacks, control] if type(c).__name__ == name]
        if not present:
            logger.warning("the checkpoint has the state of a %s, but this run has no such callback", name)
        for callback, state in zip(present, stored if isinstance(stored, list) else [stored], strict=False):
            restored = type(callback).from_state(state)
            if callback is control:
                control = restored
            else:
                handler.callbacks[handler.callbacks.index(callback)] = restored
    return control
