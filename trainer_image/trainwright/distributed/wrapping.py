"""Find the model inside the wrappers of data parallelism, compilation and adapters, and the layers inside the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside the wrappers of torch.compile and data parallelism."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or _is_engine(model):
            model = cast(nn.Module, model.module)
        else:
            return model


def _is_engine(model: nn.Module) -> bool:
    """Whether this is DeepSpeed's engine, which holds the model."""
    kind = getattr(sys.modules.get("deepspeed.runtime.engine"), "DeepSpeedEngine", None)
    return kind is not None and isinstance(model, kind)


def base_model(model: nn.Module) -> nn.Module:
    """Return the model under an adapter (PEFT) and the wrapper of torch.compile, or the model itself."""
    model = unwrap(model)
    adapted = getattr(model, "get_base_model", None)
    return cast(nn.Module, adapted()) if callable(adapted) else model


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the units of a model that ``fully_shard`` has sharded; the import of its package takes seconds."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def class_name(module: nn.Module) -> str:
    """Return the name of the user's class: ``fully_shard`` makes a subclass with a prefix."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if hasattr(module, "set_requires_gradient_sync") else name


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists that hold at least two modules with parameters.

    A list of lists, which have no forward pass of their own, yields the members of those.
    """
    if isinstance(module, nn.ModuleList | nn.Sequential):
        members = [member for member in module if any(True for _ in member.parameters())]
        if len(members) > 1:
            for member in members:
                yield from member if isinstance(member, nn.ModuleList) else [member]
            return
    for child in module.children():
        yield from layers_of(child)
