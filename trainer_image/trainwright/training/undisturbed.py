"""Call a model outside the run, without any change to the model."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from trainwright.distributed.wrapping import sharded_modules

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip
_CONTAINERS = (dict, list, set, deque)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Use ``model`` in evaluation mode and without hooks; restore every attribute and buffer afterwards.

    The hooks that gather the parameters of a sharded model stay: then all ranks call it together.
    """
    with ExitStack() as stack:
        for holder in _holders(model):
            stack.callback(_restore_attributes, vars(holder), dict(vars(holder)), _contents(holder))
        for tensor in _tensors(model):
            stack.callback(_restore_tensor, tensor, tensor.clone(), tensor._version)
        gathering = {key for hooks in _hooks(model) for key, hook in hooks.items() if _gathers(hook)}
        for hooks in _hooks(model):
            stack.callback(_refill, hooks, hooks.copy())
            _refill(hooks, {key: hook for key, hook in hooks.items() if key in gathering})
        stack.callback(_reshard, model)
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        yield


def _holders(model: nn.Module) -> list[Any]:
    """Return all modules, and their configurations, because some models fill these in at the first batch."""
    configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "__dict__")}
    return [*model.modules(), *configs.values()]


def _contents(holder: Any) -> list[tuple[Any, Any]]:
    """Return the holder's containers, each with a copy of its contents."""
    return [(value, value.copy()) for value in vars(holder).values() if type(value) in (*_CONTAINERS, OrderedDict)]


def _restore_attributes(attributes: dict[str, Any], before: dict[str, Any], contents: list[tuple[Any, Any]]) -> None:
    attributes.clear()
    attributes.update(before)
    for container, held in contents:
        _refill(container, held)


def _refill(container: Any, held: Any) -> None:
    container.clear()
    (container.update if hasattr(container, "update") else container.extend)(held)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Return buffers, and tensors that are plain attributes."""
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    return [tensor for tensor in (*model.buffers(), *plain) if not tensor.is_inference() and not tensor.requires_grad]


def _restore_tensor(tensor: torch.Tensor, before: torch.Tensor, version: int) -> None:
    if tensor._version != version:
        with torch.no_grad():
            tensor.copy_(before)


def _hooks(model: nn.Module) -> Iterator[dict[Any, Any]]:
    for module in model.modules():
        yield from (hooks for name in _HOOKS if (hooks := vars(module).get(name)))
    yield from (hooks for name in _GLOBAL_HOOKS if (hooks := getattr(torch_module, name)))


def _gathers(hook: Any) -> bool:
    """Whether a hook belongs to ``fully_shard``, or to DeepSpeed."""
    owner = getattr(getattr(hook, "func", hook), "__self__", None)
    is_of_engine = str(getattr(hook, "__module__", "")).startswith("deepspeed.")
    return is_of_engine or type(owner).__module__.startswith("torch.distributed.fsdp")


def _reshard(model: nn.Module) -> None:
    """Free the gathered parameters before the attributes are restored, which are those of the shards."""
    for module in sharded_modules(model):
        module.reshard()
