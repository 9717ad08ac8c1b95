"""Checks that this rank has the accelerator of its pool. Training on the CPU instead would only waste the node.

A retry would not find a missing device either, so the job ends as a bad configuration, with a message on how to fix it.

The number formats that a device supports are also checked before the first step, instead of failing in a kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_RUNTIME, ENV_VENDOR, UserError
from trainwright.devices import xla


@dataclass(frozen=True)
class VisibleDevices:
    """The accelerators that this process sees.

    Attributes:
        torch: Version of torch, with its build: ``2.15.0+cu130``.
        build: What torch was built for: cuda, hip, or None.
        kind: Type of the accelerator that torch uses; None without one.
        count: Number of devices of that type.
        node: Whether the node's driver shows a device to this container.
        error: Why the driver cannot be used, from torch.
    """

    torch: str
    build: str | None
    kind: str | None
    count: int
    node: bool
    error: str = ""


def require(vendor: str | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Raises :class:`UserError` when this rank of a pool of ``vendor`` (by default the pod's own) has no device."""
    vendor = vendor or environment.get(ENV_VENDOR)
    if environment.get(ENV_RUNTIME) == "torch_xla" and (reason := xla.import_error()):
        raise UserError(f"{ENV_RUNTIME}: torch_xla is not in this image ({reason}); use an image of the target tpu-xla")
    if vendor in _CHECKS:
        local_rank, ranks = (int(environment.get(name, default)) for name, default in _PLACE)
        problem = _CHECKS[vendor](detect(vendor), local_rank, ranks)
        if problem:
            raise UserError(f"accelerator: rank {environment.get('RANK', '0')}: {problem}")


_PLACE = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))


def detect(vendor: str) -> VisibleDevices:
    """Detects the devices of torch and of the node."""
    import torch

    build = "hip" if torch.version.hip else "cuda" if torch.version.cuda else None
    nodes = {"nvidia": "/dev/nvidia[0-9]*", "amd": "/dev/kfd", "tpu": "/dev/vfio/[0-9]*"}
    node = any(Path("/").glob(nodes[vendor].lstrip("/"))) or (vendor == "tpu" and any(Path("/dev").glob("accel[0-9]*")))
    if vendor == "tpu" and xla.is_used():
        return VisibleDevices(torch.__version__, build, *xla.detect(), node)
    current = torch.accelerator.current_accelerator(check_available=True)
    if current is not None:
        return VisibleDevices(torch.__version__, build, current.type, torch.accelerator.device_count(), node)
    return VisibleDevices(torch.__version__, build, None, 0, node, _driver_error(build))


def _driver_error(build: str | None) -> str:
    import torch

    if build is None:
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (str(error).strip().splitlines() or [""])[0]
    return ""


def _check_nvidia(found: VisibleDevices, local_rank: int, ranks: int) -> str | None:
    return _check_gpu(found, local_rank, ranks, "cuda", "NVIDIA GPU", "nvidia.com/gpu", "nvidia")


def _check_amd(found: VisibleDevices, local_rank: int, ranks: int) -> str | None:
    return _check_gpu(found, local_rank, ranks, "hip", "AMD GPU", "amd.com/gpu", "amd")


def _check_gpu(
    found: VisibleDevices, local_rank: int, ranks: int, build: str, device: str, resource: str, target: str
) -> str | None:
    if found.build != build:
        return (
            f"no {device} can be used: torch {found.torch} of this image was not built for it; use an image of the "
            f"target {target}"
        )
    if found.kind == "cuda":
        return _check_count(found, local_rank, ranks, device)
    if not found.node:
        return (
            f"there is no {device} in this pod: the pool's resource ({resource}) must be one that its nodes offer; "
            "check the device plugin and the pool's resourceName"
        )
    return (
        f"the {device} is there, but its driver cannot be used ({found.error or 'torch does not say why'}); update the "
        "node's driver, or use an image with an older torch"
    )


def _check_tpu(found: VisibleDevices, local_rank: int, ranks: int) -> str | None:
    if found.kind in ("tpu", "xla"):
        return None
    if not found.node:
        return (
            "there is no TPU in this pod: it must request google.com/tpu on a node of the pool's accelerator and "
            "topology"
        )
    return (
        f"there is a TPU, but torch {found.torch} cannot use it ({found.error or 'no tpu backend is registered'}); "
        "use an image of the target tpu or tpu-xla, and that runtime in the pool"
    )


def _check_count(found: VisibleDevices, local_rank: int, ranks: int, device: str) -> str | None:
    if local_rank < found.count:
        return None
    return (
        f"it is number {local_rank + 1} of {ranks} in this pod, which has {found.count} ({device}); perNode must match "
        "what the pool's resource gives to a pod"
    )


_CHECKS: dict[str, Callable[[VisibleDevices, int, int], str | None]] = {
    "nvidia": _check_nvidia,
    "amd": _check_amd,
    "tpu": _check_tpu,
}


FIRST_WITH_BF16 = 8
"""The first compute capability of NVIDIA (Ampere) with bfloat16 in hardware."""


def unsupported_format(
    args: Any, device_type: str, capability: tuple[int, int] | None = None, name: str = ""
) -> str | None:
    """The message for a number format in ``args`` that a device does not support, with a fix; None if there is none.

    Args:
        device_type: cpu, cuda, xla or tpu.
        capability: The compute capability of an NVIDIA GPU; None for other devices.
        name: The device's name, for the message.
    """
    if args.fp16 and device_type in ("xla", "tpu"):
        return "fp16: a TPU computes in bfloat16; set bf16 instead"
    if args.bf16 and capability is not None and capability[0] < FIRST_WITH_BF16:
        return f"bf16: {name or 'this GPU'} does not support bfloat16; set fp16 instead"
    return None
