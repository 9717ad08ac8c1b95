"""Mixed precision: autocast around forward, TF32, evaluation in half precision."""

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
    """Return the dtype of autocast; None is full precision."""
    return _DTYPES["bf16"] if args.bf16 else _DTYPES["fp16"] if args.fp16 else None


def autocast_forward(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Make every call of ``model.forward`` compute under autocast and return fp32.

    This wraps the method of the instance, so that overridden losses, evaluation and generation use it too. It is
    idempotent.
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
    """Convert fp16 and bf16 tensors in nested tuples, lists and mappings to fp32; keep everything else."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return map_nested(to_float32, value)


def map_nested(convert: Callable[[Any], Any], value: Any) -> Any:
    """Return the same nested structure, with ``convert`` applied to the members of each level."""
    if isinstance(value, Mapping):
        kind: Any = type(value)
        return kind({key: convert(item) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(convert(item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(convert(item) for item in value)
    return value


def apply_tf32(wanted: bool | None) -> None:
    """Turn TF32 matrix multiplication (NVIDIA Ampere and later) on or off; None keeps torch's default.

    Raises :class:`UserError` if TF32 is requested on hardware without it.
    """
    if wanted is None:
        return
    capable = torch.cuda.is_available() and torch.version.cuda and torch.cuda.get_device_capability()[0] >= 8
    if wanted and not capable:
        raise UserError("tf32: this machine has no NVIDIA GPU of the Ampere generation or later; leave tf32 unset")
    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted
