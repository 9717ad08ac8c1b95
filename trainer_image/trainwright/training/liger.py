"""The fused kernels of liger-kernel in place of parts of a Transformers model."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from trainwright.arguments.names import not_one_of
from trainwright.training.losses import ModelError, base_model


def apply_liger_kernels(model: nn.Module, settings: dict[str, Any] | None) -> None:
    """Patch ``model`` in place.

    Args:
        settings: Which kernels, by the names that liger-kernel gives them for this kind of model; None for its choice.

    Raises:
        ModelError: There are none for this kind of model, or none of a name in ``settings``.
    """
    from liger_kernel.transformers import monkey_patch

    base, settings = base_model(model), settings or {}
    kind = getattr(getattr(base, "config", None), "model_type", None)
    patch = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if patch is None:
        raise ModelError(f"use_liger_kernel: liger-kernel has nothing for {type(base).__name__}; leave it out")
    known = [name for name in inspect.signature(patch).parameters if name != "model"]
    if unknown := next((name for name in settings if name not in known), None):
        raise ModelError(f"liger_kernel_config: {unknown!r} {not_one_of(unknown, known)}")
    patch(model=base, **settings)
