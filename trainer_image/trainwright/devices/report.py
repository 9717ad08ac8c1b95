"""Every rank logs one line of JSON about its device, so that the log shows the hardware of a run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
AMD_DRIVER = Path("/sys/module/amdgpu/version")


def log_device(device: torch.device, rank: int, local_rank: int) -> None:
    """Print the line, except for a CPU."""
    if device.type != "cpu":
        who = {"rank": rank, "localRank": local_rank, "host": socket.gethostname()}
        print(json.dumps({"event": "device", **who, **describe(device)}), flush=True)


def describe(device: torch.device) -> dict[str, Any]:
    """What is known of a device: name, memory in bytes, driver, and the version of its communication library."""
    about = {"cuda": _gpu, "xla": _xla, "tpu": _tpu}.get(device.type, _other)(device)
    return {key: value for key, value in {"torch": torch.__version__, **about}.items() if value is not None}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    about = {
        "device": properties.name,
        "index": device.index,
        "memoryBytes": properties.total_memory,
        "processors": properties.multi_processor_count,
    }
    if torch.version.hip:
        architecture = getattr(properties, "gcnArchName", None)
        return about | {
            "driver": amd_driver(),
            "rocm": torch.version.hip,
            "rccl": _nccl(),
            "architecture": architecture,
        }
    capability = f"{properties.major}.{properties.minor}"
    return about | {"driver": nvidia_driver(), "cuda": torch.version.cuda, "nccl": _nccl(), "capability": capability}


def _xla(device: torch.device) -> dict[str, Any]:
    import torch_xla.runtime as runtime

    attributes = runtime.global_runtime_device_attributes()
    return {
        "device": device_name(device),
        "devices": runtime.global_runtime_device_count(),
        "coordinates": [one["coords"] for one in attributes if "coords" in one] or None,
        "spmd": runtime.is_spmd(),
        "torchXla": _version("torch_xla"),
        "driver": _version("libtpu"),
    }


def _tpu(device: torch.device) -> dict[str, Any]:
    about: dict[str, Any] = {"device": device_name(device), "index": device.index, "driver": _version("libtpu")}
    return about | {"torchTpu": _version("torch-tpu"), "topology": os.environ.get("TORCH_TPU_TOPOLOGY")}


def _other(device: torch.device) -> dict[str, Any]:
    return {"device": device.type, "index": device.index}


def device_name(device: torch.device) -> str:
    """The vendor's name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xla":
        return _xla_name()
    with contextlib.suppress(AttributeError, RuntimeError):
        return str(torch.get_device_module(device).get_device_name(device))
    return device.type


def _xla_name() -> str:
    import torch_xla.runtime as runtime

    kind = str(runtime.device_type())
    if kind == "TPU":
        from torch_xla._internal import tpu

        with contextlib.suppress(OSError, KeyError, AttributeError):
            return f"TPU {tpu.get_tpu_type()}"
    return kind


def nvidia_driver() -> str | None:
    """The version of the kernel module, from the node's /proc."""
    with contextlib.suppress(OSError):
        found = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", NVIDIA_DRIVER.read_text())
        return found.group(1) if found else None
    return None


def amd_driver() -> str | None:
    with contextlib.suppress(OSError):
        return AMD_DRIVER.read_text().strip() or None
    return None


def _nccl() -> str | None:
    with contextlib.suppress(AttributeError, RuntimeError, OSError):
        return ".".join(map(str, torch.cuda.nccl.version()))
    return None


def _version(distribution: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return None
