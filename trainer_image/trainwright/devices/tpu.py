"""TorchTPU, torch's native ``tpu`` device: one process for each, under torchrun.

accelerate does not know the device, and would let every process train alone on the CPU; so the ranks are joined here,
and accelerate's state is told of it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch

BACKEND = "cpu:gloo,tpu:tpu_dist"
"""Tensors of the host go by gloo, those of the device by the backend that TorchTPU registers."""
COMPILER = "tpu"
"""The backend of torch.compile that knows the device; inductor, torch's default, does not."""


def is_used() -> bool:
    """Whether torch has a ``tpu`` device here."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is not None and device.type == "tpu"


def join(timeout: timedelta, device_type: str = "tpu", backend: str = BACKEND) -> Any:
    """accelerate's ``PartialState`` of a gang on devices of a type that it does not know.

    Args:
        timeout: How long the ranks wait for each other.
        device_type: Of the devices.
        backend: Through which they talk.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    local_rank, launched = int(os.environ.get("LOCAL_RANK", "0")), "LOCAL_RANK" in os.environ
    if launched and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, timeout=timeout)
    state = PartialState(cpu=False)
    state.device = device_for(device_type)
    if launched and torch.distributed.get_world_size() > 1:
        # To accelerate, a gang of CPUs: one whose barrier is torch's own and whose processes compute alike.
        state.distributed_type, state.backend = DistributedType.MULTI_CPU, backend
        state.num_processes = torch.distributed.get_world_size()
        state.process_index, state.local_process_index = torch.distributed.get_rank(), local_rank
    return state


def device_for(device_type: str) -> torch.device:
    """This process's device: TorchTPU assigns one to each, by the launch environment, and takes no other index."""
    if device_type == "cpu":
        return torch.device("cpu")
    return torch.device(device_type, torch.accelerator.current_device_index())
