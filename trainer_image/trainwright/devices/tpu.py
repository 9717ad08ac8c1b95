"""TorchTPU, torch's native ``tpu`` device: one process for each device, under torchrun.

accelerate does not support the device, and would let every process train alone on the CPU. So the ranks join here, and
accelerate's state is set accordingly.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch

BACKEND = "cpu:gloo,tpu:tpu_dist"
"""gloo for tensors on the host, and the backend that TorchTPU registers for those on the device."""
COMPILER = "tpu"
"""The backend of torch.compile for this device; torch's default, inductor, does not support it."""


def is_used() -> bool:
    """Whether torch has a ``tpu`` device here."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is not None and device.type == "tpu"


def join(timeout: timedelta, device_type: str = "tpu", backend: str = BACKEND) -> Any:
    """accelerate's ``PartialState`` for a gang on a device type that accelerate does not support.

    Args:
        timeout: How long the ranks wait for each other.
        device_type: The type of the devices.
        backend: The backend of the process group.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    local_rank, launched = int(os.environ.get("LOCAL_RANK", "0")), "LOCAL_RANK" in os.environ
    if launched and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, timeout=timeout)
    state = PartialState(cpu=False)
    state.device = device_for(device_type)
    if launched and torch.distributed.get_world_size() > 1:
        # accelerate treats it like a gang of CPUs, for which it uses torch's own barrier.
        state.distributed_type, state.backend = DistributedType.MULTI_CPU, backend
        state.num_processes = torch.distributed.get_world_size()
        state.process_index, state.local_process_index = torch.distributed.get_rank(), local_rank
    return state


def device_for(device_type: str) -> torch.device:
    """This process's device. TorchTPU assigns it by the launch environment, and accepts no other index."""
    if device_type == "cpu":
        return torch.device("cpu")
    return torch.device(device_type, torch.accelerator.current_device_index())
