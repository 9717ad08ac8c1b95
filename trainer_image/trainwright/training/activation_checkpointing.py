"""Activation checkpointing: layers drop their activations and recompute them in the backward pass."""

from __future__ import annotations

import inspect
from functools import wraps
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from trainwright.arguments.errors import ModelError
from trainwright.distributed.wrapping import layers_of

_OWN = ("every_n_layers", "offload")
"""Keys of ``activation_checkpointing_kwargs`` that torch does not have."""


def recompute_activations(model: nn.Module, kwargs: dict[str, Any] | None) -> None:
    """Enable activation checkpointing in ``model``: by the model's method if it has one, else for each layer.

    Args:
        kwargs: For ``torch.utils.checkpoint.checkpoint``; and ``every_n_layers``, which skips layers.

    Raises:
        ModelError: The model has neither the method nor a list of layers.
    """
    given = dict(kwargs or {})
    own = {name: given.pop(name) for name in _OWN if name in given}
    for method, keyword in (
        ("activation_checkpointing_enable", "activation_checkpointing_kwargs"),
        ("gradient_checkpointing_enable", "gradient_checkpointing_kwargs"),
    ):
        enable = getattr(model, method, None)
        if enable is not None:
            takes = inspect.signature(enable).parameters
            enable(**{keyword: given or None}, **{name: value for name, value in own.items() if name in takes})
            return
    _wrap_layers(model, own, given)


def _wrap_layers(model: nn.Module, own: dict[str, Any], kwargs: dict[str, Any]) -> None:
    if own.get("offload"):
        raise ModelError(f"activation_checkpointing_kwargs: {type(model).__name__} cannot offload; leave offload out")
    layers = list(layers_of(model))
    if not layers:
        raise ModelError(
            f"activation_checkpointing: {type(model).__name__} has no layers in a ModuleList or Sequential to compute "
            "again; keep them in one, define gradient_checkpointing_enable, or leave it out"
        )
    for layer in layers[:: own.get("every_n_layers", 1)]:
        recompute_layer(layer, kwargs)


def recompute_layer(layer: nn.Module, kwargs: dict[str, Any] | None = None) -> None:
    """Recompute the activations of ``layer`` in the backward pass; ``kwargs`` as in :func:`recompute_activations`."""
    if hasattr(layer, "_recomputes"):
        return
    given = {"use_reentrant": False, **(kwargs or {})}
    function = type(layer).forward

    @wraps(function)
    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        if not self.training:
            return function(self, *inputs, **named)
        return checkpoint(function, self, *inputs, **named, **given)

    vars(layer)["_recomputes"] = True
    layer.forward = MethodType(forward, layer)
