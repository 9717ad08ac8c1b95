"""Small helper functions of transformers' Trainer that users import: parameters, processes, batch sizes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import find_executable_batch_size as _find_executable_batch_size
from torch import nn

from trainwright.data.loaders import has_length
from trainwright.distributed.ranks import Ranks
from trainwright.evaluation.passes import plain

__all__ = [
    "denumpify_detensorize", "find_executable_batch_size", "get_dataloader_sampler", "get_model_param_count",
    "get_parameter_names", "has_length", "is_main_process", "number_of_arguments", "torch_distributed_zero_first",
    "total_processes_number",
]  # fmt: skip


def get_parameter_names(
    model: nn.Module, forbidden_layer_types: Sequence[type], forbidden_layer_names: Sequence[str] | None = None
) -> list[str]:
    """The names of parameters outside layers of these types, and whose lower-case name matches none of the patterns.

    A pattern is matched against the name as seen from every enclosing module: ``^bias`` matches all biases.
    """
    patterns = [re.compile(pattern) for pattern in forbidden_layer_names or ()]
    types = tuple(forbidden_layer_types)

    def names(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            if not isinstance(child, types):
                yield from names(child, f"{prefix}{name}.")
        yield from (f"{prefix}{name}" for name in module._parameters)

    def is_forbidden(name: str) -> bool:
        parts = name.lower().split(".")
        within = [".".join(parts[level:]) for level in range(len(parts))]
        return any(pattern.search(part) for pattern in patterns for part in within)

    return [name for name in names(model, "") if not is_forbidden(name)]


def get_model_param_count(model: nn.Module, trainable_only: bool = False) -> int:
    """The number of parameters of a model, or only of those that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def get_dataloader_sampler(dataloader: Any) -> Any:
    """The innermost sampler of a loader; None if it has none."""
    inner = getattr(dataloader, "batch_sampler", None)
    return getattr(dataloader, "sampler", None) if inner is None else get_dataloader_sampler(inner)


def number_of_arguments(func: Callable[..., Any]) -> int:
    """How many arguments a function takes, not counting those that a ``partial`` has bound."""
    if isinstance(func, functools.partial):
        return number_of_arguments(func.func) - len(func.args) - len(func.keywords)
    return len(inspect.signature(func).parameters)


def find_executable_batch_size(
    function: Callable[..., Any] | None = None, starting_batch_size: int = 128, auto_find_batch_size: bool = False
) -> Any:
    """``function`` with the largest ``batch_size`` that fits into memory, tried from ``starting_batch_size`` down.

    Args:
        function: Takes ``batch_size`` as its first argument; without it, this is a decorator.
        auto_find_batch_size: False to use ``starting_batch_size`` without a search.
    """
    settings: dict[str, Any] = {
        "starting_batch_size": starting_batch_size,
        "auto_find_batch_size": auto_find_batch_size,
    }
    if function is None:
        return functools.partial(find_executable_batch_size, **settings)
    if auto_find_batch_size:
        return _find_executable_batch_size(function=function, starting_batch_size=starting_batch_size)
    return functools.partial(function, batch_size=starting_batch_size)


def denumpify_detensorize(metrics: Any) -> Any:
    """Converts numbers of NumPy and torch, in any nest, to those of Python, which JSON supports."""
    return plain(metrics)


def is_main_process(local_rank: int) -> bool:
    """Whether this is the first process of its node; -1 means a single process."""
    return local_rank in (-1, 0)


def total_processes_number(local_rank: int) -> int:
    """How many processes train together; -1 means a single process."""
    return 1 if local_rank == -1 else Ranks.current().world_size


@contextmanager
def torch_distributed_zero_first(local_rank: int) -> Iterator[None]:
    """The first process of a node runs the body first; the others wait until it has finished."""
    if local_rank not in (-1, 0):
        Ranks.current().barrier()
    yield
    if local_rank == 0:
        Ranks.current().barrier()
