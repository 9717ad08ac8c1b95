"""What a Trainer is given, looked at before anything is done with it: one line for each mistake, with the mend."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from trainwright import rules
from trainwright.arguments.errors import shown
from trainwright.arguments.names import nearest
from trainwright.callbacks.callback import EVENTS, TrainerCallback
from trainwright.contract import DataError, UserError
from trainwright.trainer.introspection import NotCallableError, TrainerError
from trainwright.training.best import no_such_metric

Init = TypeVar("Init", bound=Callable[..., None])

FORMER = {
    "tokenizer": "processing_class",
    "feature_extractor": "processing_class",
    "image_processor": "processing_class",
    "processor": "processing_class",
    "training_args": "args",
    "collate_fn": "data_collator",
    "train_data": "train_dataset",
    "eval_data": "eval_dataset",
    "test_dataset": "eval_dataset",
    "metrics": "compute_metrics",
    "loss_fn": "compute_loss_func",
    "optimizer": "optimizers=(optimizer, None)",
    "lr_scheduler": "optimizers=(None, scheduler)",
}
"""What older versions of transformers called an argument of the Trainer, and what people write by habit -> the name."""

FUNCTIONS = {
    "compute_loss_func": "(outputs, labels, num_items_in_batch=None) -> loss",
    "compute_metrics": "EvalPrediction -> dict",
    "preprocess_logits_for_metrics": "(logits, labels) -> what compute_metrics shall see",
    "model_init": "() -> model",
}


class UnknownGivenError(TrainerError, TypeError):
    """A name that the Trainer has no argument of; a :class:`TypeError`, as Python raises for those."""


def known_names(init: Init) -> Init:
    """Lets ``__init__`` say what a name is called that it does not have, also where a subclass passes it on."""
    names = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        if unknown := [name for name in values if name not in names]:
            raise UnknownGivenError(_unknown(unknown[0], names))
        init(self, *args, **values)

    return checked  # type: ignore[return-value]


def _unknown(name: str, names: Mapping[str, Any]) -> str:
    if name in FORMER:
        return f"{name}: is not an argument of the Trainer; use {FORMER[name]}"
    if name in _arguments():
        return f"{name}: is not an argument of the Trainer, but one of TrainingArguments; give it there"
    return f"{name}: is not an argument of the Trainer{nearest(name, [n for n in names if n != 'self'])}"


def _arguments() -> Mapping[str, Any]:
    from trainwright.arguments.fields import FIELDS

    return FIELDS


def check(trainer: Any, model: Any, callbacks: Any, optimizers: Any) -> None:
    """Raises :class:`UserError` for what is not of its kind."""
    _check_model(trainer, model)
    for name, form in FUNCTIONS.items():
        function = getattr(trainer, name)
        if function is not None and not callable(function):
            raise NotCallableError(f"{name}: it must be a function, {form}, not {_kind(function)}")
    if not isinstance(optimizers, tuple | list) or len(optimizers) != 2:
        raise TrainerError(
            f"optimizers: it must be a pair, (optimizer, scheduler), either may be None, not {_kind(optimizers)}"
        )
    if trainer.compute_loss_func is not None and not takes(trainer.compute_loss_func, "num_items_in_batch"):
        raise TrainerError(
            "compute_loss_func: it does not take num_items_in_batch; declare it as "
            "(outputs, labels, num_items_in_batch=None), and divide the sum of the losses by it where it is given"
        )
    if trainer.args.batch_eval_metrics and not takes(trainer.compute_metrics, "compute_result"):
        raise TrainerError(
            "compute_metrics: batch_eval_metrics calls it for each batch, with compute_result True at the last one; "
            "declare it as (prediction, compute_result), or leave batch_eval_metrics out"
        )
    _check_optimizers(trainer, *optimizers)
    _check_callbacks(callbacks)
    if not trainer._overrides("get_train_dataloader"):  # who has several sets of its own mixes them there
        _check_train_set(trainer.train_dataset)


def _check_optimizers(trainer: Any, optimizer: Any, scheduler: Any) -> None:
    if optimizer is not None and trainer.optimizer_cls_and_kwargs is not None:
        raise TrainerError("Trainer: give one of optimizers and optimizer_cls_and_kwargs, and not both")
    if trainer.model_init is not None and (optimizer is not None or scheduler is not None):
        raise TrainerError("Trainer: optimizers belong to one model; with model_init override create_optimizer")


def _check_model(trainer: Any, model: Any) -> None:
    if (model is None) == (trainer.model_init is None):
        raise TrainerError("Trainer: give one of model and model_init, and not both")
    if model is not None and not isinstance(model, nn.Module):
        raise TrainerError(
            f"model: it must be a torch.nn.Module, not {_kind(model)}; load it first, as by AutoModel.from_pretrained"
        )


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple):
        raise TrainerError(f"callbacks: it must be a list of callbacks, not {_kind(callbacks)}; write [...] around it")
    for callback in callbacks:
        if not any(hasattr(callback, event) for event in EVENTS):
            raise TrainerError(
                f"callbacks: {_kind(callback)} is no callback; derive its class from {TrainerCallback.__name__}"
            )


def _check_train_set(data: Any) -> None:
    """Several sets by name, as datasets loads them, are for evaluation alone."""
    if isinstance(data, Mapping) and data and all(isinstance(key, str) for key in data):
        some = f"{', '.join(list(data)[:5])}; give one of them, as data[{next(iter(data))!r}]"
        raise DataError(f"train_dataset: it is a dict of {some}")


def check_methods(trainer: Any) -> None:
    """Raises where the user's own ``compute_loss`` cannot be called as it will be."""
    needed = [] if trainer._overrides("training_step") else ["num_items_in_batch"]
    if trainer.args.eval_strategy != "no" and not trainer._overrides("prediction_step"):
        needed.append("return_outputs")
    if missing := [name for name in needed if not takes(trainer.compute_loss, name)]:
        raise TrainerError(
            f"compute_loss: that of {type(trainer).__name__} does not take {' and '.join(missing)}; declare it as "
            "compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None)"
        )


def takes(function: Any, name: str) -> bool:
    """Whether ``function`` can be called with a keyword ``name``; where it cannot be told it can."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_best_metric(trainer: Any) -> None:
    """Raises where it is plain that no evaluation gives the metric that the best model is chosen by."""
    args, sets = trainer.args, trainer.eval_dataset
    name = args.metric_for_best_model
    if name is None or args.eval_strategy == "no" or trainer.compute_metrics is not None:
        return
    if any(trainer._overrides(method) for method in _GIVE_METRICS) or not _silent(trainer.callback_handler):
        return
    prefixes = [f"{key}_" for key in sets] if isinstance(sets, dict) else [""]
    known = [f"{prefix}{metric}" for prefix in prefixes for metric in ("loss", *rules.MEASURED)]
    if name.removeprefix("eval_") not in known:
        raise no_such_metric(name, known)


_GIVE_METRICS = ("evaluate", "_evaluate", "evaluation_loop", "prediction_step", "log", "_determine_best_metric")


def _silent(handler: Any) -> bool:
    """Whether no callback of the user's may add to the metrics of an evaluation."""
    return all(
        type(callback).__module__.startswith(("trainwright.", "transformers."))
        for callback in handler.listeners["on_evaluate"]
    )


def named_numbers(metrics: Any) -> dict[str, Any]:
    """What ``compute_metrics`` returned. Raises :class:`UserError` for anything but names with values."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    raise UserError(
        f"compute_metrics: it returned {_kind(metrics)}; return a dict of names and numbers, as {{'accuracy': 0.5}}"
    )


def shown_to_metrics(kept: Any) -> Any:
    """What ``preprocess_logits_for_metrics`` returned. Raises :class:`UserError` where that is nothing."""
    if kept is None:
        raise UserError("preprocess_logits_for_metrics: it returned None; return what compute_metrics shall see")
    return kept


def _kind(value: Any) -> str:
    """A value in the words of a message: what it is, and its text where that is short."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    is_plain = isinstance(value, str | int | float | bool)
    return "nothing (None)" if value is None else f"the {name} {shown('', value)}" if is_plain else f"a {name}"
