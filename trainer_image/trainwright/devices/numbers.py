"""Which number formats a device computes in, told before the first step instead of by the error of a kernel. Pure."""

from __future__ import annotations

from typing import Any

FIRST_WITH_BF16 = 8
"""NVIDIA's compute capability from which on (Ampere) bfloat16 is computed in hardware."""


def problem(args: Any, device_type: str, capability: tuple[int, int] | None = None, name: str = "") -> str | None:
    """What of ``args`` a device cannot do, and the mend; None when it can do all.

    Args:
        device_type: cpu, cuda, xla or tpu.
        capability: Of an NVIDIA GPU; None for all others.
        name: Of the device, for the message.
    """
    if args.fp16 and device_type in ("xla", "tpu"):
        return "fp16: a TPU computes in bfloat16; set bf16 instead"
    if args.bf16 and capability is not None and capability[0] < FIRST_WITH_BF16:
        return f"bf16: {name or 'this GPU'} is older than bfloat16; set fp16 instead"
    return None
