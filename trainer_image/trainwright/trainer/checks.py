"""Checks of a Trainer's arguments, before they are used: one line for each mistake, with the fix."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from trainwright.arguments.errors import NotCallableError, TrainerError, kind_of
from trainwright.arguments.sharding import is_on
from trainwright.callbacks.callback import EVENTS, TrainerCallback
from trainwright.contract import DataError
from trainwright.distributed.ranks import Ranks
from trainwright.nearest import did_you_mean
from trainwright.training.checks import takes

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
"""Names from older versions of transformers, and frequent mistakes -> the name of the Trainer's argument."""

FUNCTIONS = {
    "compute_loss_func": "(outputs, labels, num_items_in_batch=None) -> loss",
    "compute_metrics": "EvalPrediction -> dict",
    "preprocess_logits_for_metrics": "(logits, labels) -> what compute_metrics shall see",
    "model_init": "() -> model",
}


class UnknownGivenError(TrainerError, TypeError):
    """The Trainer has no argument of this name; a :class:`TypeError`, like Python's own error."""


def known_names(init: Init) -> Init:
    """Make ``__init__`` suggest the right name for an unknown argument, also when a subclass passes it on."""
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
    return f"{name}: is not an argument of the Trainer{did_you_mean(name, [n for n in names if n != 'self'])}"


def _arguments() -> Mapping[str, Any]:
    from trainwright.arguments.fields import FIELDS

    return FIELDS


def check(trainer: Any, model: Any, callbacks: Any, optimizers: Any) -> None:
    """Raises :class:`UserError` for arguments of the wrong type."""
    _check_model(trainer, model)
    for name, form in FUNCTIONS.items():
        function = getattr(trainer, name)
        if function is not None and not callable(function):
            raise NotCallableError(f"{name}: it must be a function, {form}, not {kind_of(function)}")
    if not isinstance(optimizers, tuple | list) or len(optimizers) != 2:
        raise TrainerError(
            f"optimizers: it must be a pair, (optimizer, scheduler), either may be None, not {kind_of(optimizers)}"
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
    if not trainer._overrides("get_train_dataloader"):  # the override may mix several datasets
        _check_train_set(trainer.train_dataset)


def _check_optimizers(trainer: Any, optimizer: Any, scheduler: Any) -> None:
    if optimizer is not None and trainer.optimizer_cls_and_kwargs is not None:
        raise TrainerError("Trainer: give one of optimizers and optimizer_cls_and_kwargs, and not both")
    if optimizer is not None and is_on(trainer.args.fsdp):
        raise TrainerError(
            "optimizers: with fsdp the optimizer is made of the shards, after the model is sharded; name it in optim, "
            "give optimizer_cls_and_kwargs, or override create_optimizer"
        )
    if trainer.model_init is not None and (optimizer is not None or scheduler is not None):
        raise TrainerError("Trainer: optimizers belong to one model; with model_init override create_optimizer")


def _check_model(trainer: Any, model: Any) -> None:
    if (model is None) == (trainer.model_init is None):
        raise TrainerError("Trainer: give one of model and model_init, and not both")
    if model is not None and not isinstance(model, nn.Module):
        raise TrainerError(
            f"model: it must be a torch.nn.Module, not {kind_of(model)}; load it first, as by AutoModel.from_pretrained"
        )


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple):
        raise TrainerError(
            f"callbacks: it must be a list of callbacks, not {kind_of(callbacks)}; write [...] around it"
        )
    for callback in callbacks:
        if not any(hasattr(callback, event) for event in EVENTS):
            raise TrainerError(
                f"callbacks: {kind_of(callback)} is no callback; derive its class from {TrainerCallback.__name__}"
            )


def _check_train_set(data: Any) -> None:
    """Reject a dict of datasets, which only evaluation accepts."""
    if isinstance(data, Mapping) and data and all(isinstance(key, str) for key in data):
        some = f"{', '.join(list(data)[:5])}; give one of them, as data[{next(iter(data))!r}]"
        raise DataError(f"train_dataset: it is a dict of {some}")


def checked_arguments(args: Any) -> Any:
    """Validate the arguments again, because they may have changed; None gives the defaults.

    Raises :class:`UserError`.
    """
    from trainwright.arguments import TrainingArguments

    if args is None:
        return TrainingArguments(output_dir="tmp_trainer")
    if hasattr(args, "check"):
        args.check()
    elif hasattr(args, "output_dir"):
        _check_theirs(args)
    else:
        raise TrainerError(f"args: give TrainingArguments, not {type(args).__name__}; the model comes before them")
    return args


def _check_theirs(args: Any) -> None:
    from trainwright.arguments import AcceleratorConfig, environment
    from trainwright.arguments.check import checked
    from trainwright.arguments.fields import FIELDS

    environment.apply(args)
    _complete(args)
    values = checked({name: getattr(args, name) for name in FIELDS if hasattr(args, name)})
    args.accelerator_config = values["accelerator_config"] or AcceleratorConfig()
    accumulation = args.accelerator_config.gradient_accumulation_kwargs or {}
    args.gradient_accumulation_steps = accumulation.get("num_steps", args.gradient_accumulation_steps)
    _check_together(args)


def _complete(args: Any) -> None:
    """Add the arguments that an older transformers lacks or names differently."""
    from trainwright.arguments import TrainingArguments
    from trainwright.arguments.derive import ALIASES

    for older, name in ALIASES:
        if not hasattr(args, name) and hasattr(args, older):
            setattr(args, name, getattr(args, older) or None)
    if missing := [name for name in TrainingArguments.__dataclass_fields__ if not hasattr(args, name)]:
        ours = TrainingArguments(output_dir=str(args.output_dir))
        for name in missing:
            setattr(args, name, getattr(ours, name))


def _check_together(args: Any) -> None:
    """Raises if the arguments (of transformers) would train alone in a process that has joined a group."""
    ranks = Ranks.current()
    if args.world_size < ranks.world_size:
        raise TrainerError(
            f"use_cpu: this process is one of {ranks.world_size}, and these arguments would let each train by itself, "
            "into the same output; transformers' arguments join processes on CPUs with use_cpu=True alone: set it"
        )
