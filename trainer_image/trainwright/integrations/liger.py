"""Fused kernels of liger-kernel for parts of a Transformers model, while it is trained.

Besides parts of the model, liger-kernel replaces names in transformers and torch that all models of the process use
(``LlamaMLP``, ``nn.LayerNorm``, ``nn.functional.cross_entropy``). These names are restored when the run ends.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from trainwright.arguments.errors import ModelError
from trainwright.arguments.names import not_one_of
from trainwright.distributed.wrapping import base_model

_PATCHED = ("transformers.models.", "transformers.loss.", "transformers.modeling_", "torch.nn")

Names = list[tuple[Any, dict[str, Any]]]


@contextmanager
def liger_kernels(model: nn.Module, settings: dict[str, Any] | None) -> Iterator[None]:
    """Applies the kernels to ``model``, which keeps them; replaced global names are restored on exit.

    Args:
        settings: Which kernels, by liger-kernel's names for this kind of model; None for its defaults.

    Raises:
        ModelError: liger-kernel does not support this kind of model, or has no kernel of a name in ``settings``.
    """
    patch = _patch_for(base_model(model), settings or {})
    before = _snapshot_names()
    try:
        patch(model=base_model(model), **settings or {})
        yield
    finally:
        _restore_names(before)


def _patch_for(base: nn.Module, settings: dict[str, Any]) -> Any:
    from liger_kernel.transformers import monkey_patch

    kind = getattr(getattr(base, "config", None), "model_type", None)
    patch = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if patch is None:
        raise ModelError(f"use_liger_kernel: liger-kernel has no kernels for {type(base).__name__}; leave it out")
    known = [name for name in inspect.signature(patch).parameters if name != "model"]
    if unknown := next((name for name in settings if name not in known), None):
        raise ModelError(f"liger_kernel_config: {unknown!r} {not_one_of(unknown, known)}")
    return patch


def _snapshot_names() -> Names:
    """The current attributes of the modules, and of their classes, that liger-kernel may change."""
    modules = [module for name, module in sys.modules.items() if name.startswith(_PATCHED) and _is_loaded(module)]
    classes = [held for module in modules for held in vars(module).values() if _defines(module, held)]
    return [(holder, dict(vars(holder))) for holder in (*modules, *classes)]


def _is_loaded(module: Any) -> bool:
    """False for the packages of transformers that import on demand: liger-kernel replaces no names in them."""
    return type(module) is ModuleType


def _defines(module: ModuleType, held: Any) -> bool:
    return isinstance(held, type) and issubclass(held, nn.Module) and held.__module__ == module.__name__


def _restore_names(before: Names) -> None:
    for holder, held in before:
        for name, value in held.items():
            if vars(holder).get(name) is not value:
                setattr(holder, name, value)
