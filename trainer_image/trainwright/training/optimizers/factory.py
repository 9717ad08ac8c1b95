"""Create the optimizer named by ``optim``: its class, its keyword arguments, its parameter groups.

Weight decay applies to the weights of layers, never to biases and normalisation.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from trainwright.arguments.machine import package_problem
from trainwright.devices import xla
from trainwright.rules import IN_BACKWARD, LAYERWISE, LOW_RANK
from trainwright.training.optimizers.adafactor import Adafactor
from trainwright.training.optimizers.averaging import with_kept_weights
from trainwright.training.optimizers.errors import AloneError, MissingOptimizerError, OptimizerError
from trainwright.training.optimizers.lomo import FusedBackward
from trainwright.training.optimizers.lowrank import (
    DEFAULTS,
    Layerwise,
    groups_with_targets,
    target_weights,
)
from trainwright.training.optimizers.recipes import RECIPES, Recipe
from trainwright.training.optimizers.saving import plainly_saved

__all__ = ["Adafactor", "OptimizerError", "create_optimizer", "get_decay_parameter_names"]

logger = logging.getLogger(__name__)

_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")

# Keys of an optimizer's settings that hold what it optimizes instead; libraries name their groups by the last.
_BRINGS_PARAMETERS = ("params", "model", "optimizer_dict")


def get_decay_parameter_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters with weight decay: not in a LayerNorm, and not named as a bias or a norm."""
    return list(_decayed(model, ""))


def _decayed(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if not isinstance(child, nn.LayerNorm):
            yield from _decayed(child, f"{prefix}{name}.")
    for name in module._parameters:
        if not _UNDECAYED.search(f"{prefix}{name}".lower()):
            yield f"{prefix}{name}"


def parameter_groups(model: nn.Module, decayed: list[str], weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of the trainable parameters: with weight decay, and without."""
    names = frozenset(decayed)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trainable if name in names], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if name not in names], "weight_decay": 0.0},
    ]


def parse_optim_args(text: str | None) -> dict[str, str]:
    """Parse ``"momentum=0.9, nesterov=true"`` into a dict of strings."""
    pairs = [pair.partition("=") for pair in (text or "").replace(" ", "").split(",") if pair]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise OptimizerError(f"optim_args: {key}{equals}{value!r} is not of the form key=value")
    return {key: value for key, _, value in pairs}


def read_settings(name: str, text: str | None) -> dict[str, Any]:
    """Parse ``optim_args`` into the types that the optimizer ``name`` takes. Raises :class:`OptimizerError`."""
    readers, given = RECIPES[name].settings, parse_optim_args(text)
    if unknown := [key for key in given if key not in readers]:
        raise OptimizerError(f"optim_args: {name} takes {', '.join(readers) or 'none'}, not {', '.join(unknown)}")
    return {key: _read(readers[key], key, value) for key, value in given.items()}


def _read(reader: Callable[[str], Any], key: str, text: str) -> Any:
    try:
        return reader(text)
    except ValueError as error:
        words = "is no whole number" if reader is int else "is no number" if reader is float else f": {error}"
        raise OptimizerError(f"optim_args: {key}={text} {words}".replace(" :", ":")) from None


def get_optimizer_cls_and_kwargs(args: Any, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the class that ``args.optim`` names and its keyword arguments, including the learning rate.

    For optimizers that need the model (low-rank optimizers, LOMO) these include ``params`` or ``model``.

    Raises:
        OptimizerError: The package is not installed, the optimizer does not have a setting, or no layer is a target.
    """
    name = getattr(args.optim, "value", args.optim)
    if (problem := package_problem(name)) is not None:
        raise MissingOptimizerError(f"optim: {problem}")
    recipe, settings = RECIPES[name], read_settings(name, args.optim_args)
    kwargs = {"lr": args.learning_rate, **recipe.fixed, **_taken(recipe, args, model, settings)}
    cls = _class_of(recipe, name)
    if name in LOW_RANK:
        return _low_rank(name, cls, kwargs, args, model, settings)
    if name in IN_BACKWARD:
        _refuse_ranks(name, args)
        return partial(FusedBackward, cls), {"model": _needed(model, name), **kwargs}
    return cls, xla.plain_kernels(kwargs | settings)


def _class_of(recipe: Recipe, name: str) -> Any:
    module, _, attribute = recipe.made_by.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    if name in LOW_RANK or name == "grokadamw":
        return plainly_saved(cls)
    return with_kept_weights(cls) if name.startswith("schedule_free") else cls


def _taken(recipe: Recipe, args: Any, model: nn.Module | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the recipe takes; entries merged into them are removed from ``settings``."""
    makers: Mapping[str, Callable[[], dict[str, Any]]] = {
        "betas": lambda: {"betas": (args.adam_beta1, args.adam_beta2)},
        "betas3": lambda: {"betas": _three_betas(args, settings)},
        "eps": lambda: {"eps": args.adam_epsilon},
        "stated": lambda: _stated(args),
        "weight_decay": lambda: {"weight_decay": args.weight_decay},
        "warmup_steps": lambda: {"warmup_steps": _warmup(args)},
        "triton": lambda: {} if model is None or _on_accelerator(model) else {"triton": False},
    }
    return {key: value for what in recipe.takes for key, value in makers[what]().items()}


def _three_betas(args: Any, settings: dict[str, Any]) -> tuple[float, float, float]:
    defaults = {"beta1": args.adam_beta1, "beta2": args.adam_beta2, "beta3": 0.9999}
    first, second, third = (settings.pop(name, default) for name, default in defaults.items())
    return first, second, third


def _stated(args: Any) -> dict[str, Any]:
    """Return Adam's settings that differ from the defaults, so that GaLore keeps its default epsilon."""
    said = {} if args.adam_epsilon == 1e-8 else {"eps": args.adam_epsilon}
    return {"betas": (args.adam_beta1, args.adam_beta2), **said}


def _warmup(args: Any) -> int:
    if args.warmup_steps >= 1 or args.warmup_steps == 0:
        return int(args.warmup_steps)
    if args.max_steps <= 0:
        raise OptimizerError(
            "warmup_steps: a schedule-free optimizer must know the number of steps; give that, or set max_steps"
        )
    return int(args.get_warmup_steps(args.max_steps))


def _on_accelerator(model: nn.Module) -> bool:
    return all(parameter.device.type != "cpu" for parameter in model.parameters())


def _low_rank(
    name: str, cls: Any, kwargs: dict[str, Any], args: Any, model: nn.Module | None, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    model = _needed(model, name)
    if args.optim_target_modules is None:
        raise OptimizerError(f'optim_target_modules: {name} must know which layers to project; "all-linear" for all')
    parameters = dict(model.named_parameters())
    targets = [parameters[each] for each in target_weights(model, args.optim_target_modules) if each in parameters]
    groups = parameter_groups(model, get_decay_parameter_names(model), args.weight_decay)
    kwargs["params"] = groups_with_targets(groups, targets, DEFAULTS[name.partition("_")[0]] | settings)
    if name not in LAYERWISE:
        return cls, kwargs
    _refuse_ranks(name, args)
    params, rate = kwargs.pop("params"), kwargs["lr"]
    return Layerwise, {"params": params, "make": partial(cls, **kwargs), "lr": rate}


def _needed(model: nn.Module | None, name: str) -> nn.Module:
    if model is None:
        raise OptimizerError(f"optim: {name} must know the model; pass it as the second argument")
    return model


def _refuse_ranks(name: str, args: Any) -> None:
    if args.world_size > 1:
        raise AloneError(
            f"optim: {name} steps within the backward pass, before the processes have shared their gradients; "
            "train with one process, or choose another optimizer"
        )


def create_optimizer(trainer: Any, model: nn.Module | None = None) -> Any:
    """Return the optimizer of ``trainer``; create it from the arguments if there is none."""
    if trainer.optimizer is None:
        _tell_of_targets(trainer.args)
        model = trainer.model if model is None else model
        groups = parameter_groups(model, trainer.get_decay_parameter_names(model), trainer.args.weight_decay)
        optimizer, kwargs = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(
            trainer.args, model
        )
        if is_factory(optimizer):
            trainer.optimizer = optimizer()(model, **kwargs)
        else:
            kwargs = dict(kwargs)
            for name in _BRINGS_PARAMETERS:
                groups = kwargs.pop(name, groups)
            trainer.optimizer = optimizer(groups, **kwargs)
        _keep_embeddings_in_float32(optimizer, kwargs, model)
    return trainer.optimizer


def _tell_of_targets(args: Any) -> None:
    if args.optim_target_modules is not None and args.optim not in LOW_RANK:
        logger.warning(
            "optim_target_modules: %s trains all layers alike; leave it out, or choose galore_... or apollo_...",
            getattr(args.optim, "value", args.optim),
        )


def is_factory(optimizer: Any) -> bool:
    """Whether ``optimizer`` is a factory: it is called, and then called with the model to group its parameters."""
    if isinstance(optimizer, partial):
        optimizer = optimizer.func
    return not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer))


def _keep_embeddings_in_float32(cls: Any, kwargs: dict[str, Any], model: nn.Module) -> None:
    """Keep optimizer state of embeddings in 32 bits, because 8 bits are too few, as bitsandbytes' authors found."""
    if "bitsandbytes" not in str(cls) or kwargs.get("optim_bits") != 8:
        return
    from bitsandbytes import optim as bnb

    manager: Any = bnb.GlobalOptimManager  # type: ignore[attr-defined]
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
