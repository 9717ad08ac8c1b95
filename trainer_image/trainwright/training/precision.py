"""Numbers of fewer bits: autocast around forward, TF32, evaluation in half precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn

from trainwright.contract import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def training_dtype(args: Any) -> torch.dtype | None:
    """What autocast computes in; None is full precision."""
    return _DTYPES["bf16"] if args.bf16 else _DTYPES["fp16"] if args.fp16 else None


def autocast_forward(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Let ``model.forward`` compute under autocast and return fp32, however it is called.

    It wraps the method of this one instance, so that overridden losses, evaluation and generation are covered alike.
    Doing it again changes nothing.
    """
    if dtype is None or hasattr(model, "_original_forward"):
        return
    original = model.forward
    vars(model)["_original_forward"] = original
    function = getattr(original, "__func__", None)

    @wraps(function or original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype=dtype):
            outputs = (function or original)(*args, **kwargs)
        return to_float32(outputs)

    # bound, so that a copy of the model calls itself
    model.forward = forward if function is None else MethodType(forward, model)


def to_float32(value: Any) -> Any:
    """fp16 and bf16 tensors in any nest of tuples, lists and mappings as fp32; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return map_nested(to_float32, value)


def map_nested(convert: Callable[[Any], Any], value: Any) -> Any:
    """A nest of the same types, with ``convert`` applied to what each of its levels holds."""
    if isinstance(value, Mapping):
        kind: Any = type(value)
        return kind({key: convert(item) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(convert(item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(convert(item) for item in value)
    return value


def apply_tf32(wanted: bool | None) -> None:
    """Turn TF32 multiplications of NVIDIA's Ampere and later on or off; None leaves torch's choice.

    Raises :class:`UserError` when they are asked for where there are none.
    """
    if wanted is None:
        return
    capable = torch.cuda.is_available() and torch.version.cuda and torch.cuda.get_device_capability()[0] >= 8
    if wanted and not capable:
        raise UserError("tf32: this machine has no NVIDIA GPU of the Ampere generation or later; leave tf32 unset")
    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted
