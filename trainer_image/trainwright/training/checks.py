"""Checks that need a prepared run: the methods that it will call, the metric, the optimizer."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from trainwright import rules
from trainwright.arguments.errors import TrainerError
from trainwright.contract import UserError
from trainwright.training.best import no_such_metric


def check_methods(trainer: Any) -> None:
    """Raises if the signature of the user's ``compute_loss`` does not fit the Trainer's call."""
    needed = [] if trainer._overrides("training_step") else ["num_items_in_batch"]
    if trainer.args.eval_strategy != "no" and not trainer._overrides("prediction_step"):
        needed.append("return_outputs")
    if missing := [name for name in needed if not takes(trainer.compute_loss, name)]:
        raise TrainerError(
            f"compute_loss: that of {type(trainer).__name__} does not take {' and '.join(missing)}; declare it as "
            "compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None)"
        )


def takes(function: Any, name: str) -> bool:
    """Whether ``function`` accepts a keyword ``name``; true if the signature is unknown."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_best_metric(trainer: Any) -> None:
    """Raises if no evaluation can return the metric that chooses the best model."""
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
    """Whether no user callback can add metrics to an evaluation."""
    return all(
        type(callback).__module__.startswith(("trainwright.", "transformers."))
        for callback in handler.listeners["on_evaluate"]
    )


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Raises :class:`UserError` for an optimizer that holds no parameters of the model."""
    held = {id(parameter) for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]}
    if not held:
        raise UserError("optimizers: the optimizer holds no parameters; make it from model.parameters()")
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise UserError(
            "optimizers: the optimizer holds none of the model's parameters, so nothing would be trained; make it from "
            "model.parameters() of the model that the Trainer is given"
        )
