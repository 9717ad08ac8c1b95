"""Find the model inside the wrappers of data parallelism, compilation and adapters, and the layers inside the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside the wrappers of torch.compile and data parallelism."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


def base_model(model: nn.Module) -> nn.Module:
    """Return the model under an adapter (PEFT) and the wrapper of torch.compile, or the model itself."""
    model = unwrap(model)
    adapted = getattr(model, "get_base_model", None)
    return cast(nn.Module, adapted()) if callable(adapted) else model


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists that hold at least two modules with parameters."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        members = [member for member in module if any(True for _ in member.parameters())]
        if len(members) > 1:
            yield from members
            return
    for child in module.children():
        yield from layers_of(child)
