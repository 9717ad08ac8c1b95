"""The fused kernels of liger-kernel in place of parts of a Transformers model, while it is trained.

Beside the parts of the model that it is given, liger-kernel replaces names of transformers and of torch itself, which
every other model of the process goes by (``LlamaMLP``, ``nn.LayerNorm``, ``nn.functional.cross_entropy``). They are put
back when the run ends.
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
    """``model`` with the kernels, which stay in it, and within also what liger-kernel replaces for every model.

    Args:
        settings: Which kernels, by the names that liger-kernel gives them for this kind of model; None for its choice.

    Raises:
        ModelError: There are none for this kind of model, or none of a name in ``settings``.
    """
    patch = _patch_for(base_model(model), settings or {})
    before = _names()
    try:
        patch(model=base_model(model), **settings or {})
        yield
    finally:
        _put_back(before)


def _patch_for(base: nn.Module, settings: dict[str, Any]) -> Any:
    from liger_kernel.transformers import monkey_patch

    kind = getattr(getattr(base, "config", None), "model_type", None)
    patch = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if patch is None:
        raise ModelError(f"use_liger_kernel: liger-kernel has nothing for {type(base).__name__}; leave it out")
    known = [name for name in inspect.signature(patch).parameters if name != "model"]
    if unknown := next((name for name in settings if name not in known), None):
        raise ModelError(f"liger_kernel_config: {unknown!r} {not_one_of(unknown, known)}")
    return patch


def _names() -> Names:
    """What the modules that liger-kernel may touch, and the classes in them, hold now."""
    modules = [module for name, module in sys.modules.items() if name.startswith(_PATCHED) and _is_loaded(module)]
    classes = [held for module in modules for held in vars(module).values() if _defines(module, held)]
    return [(holder, dict(vars(holder))) for holder in (*modules, *classes)]


def _is_loaded(module: Any) -> bool:
    """Not one of transformers' packages that import on demand: no name of theirs is replaced."""
    return type(module) is ModuleType


def _defines(module: ModuleType, held: Any) -> bool:
    return isinstance(held, type) and issubclass(held, nn.Module) and held.__module__ == module.__name__


def _put_back(before: Names) -> None:
    for holder, held in before:
        for name, value in held.items():
            if vars(holder).get(name) is not value:
                setattr(holder, name, value)
