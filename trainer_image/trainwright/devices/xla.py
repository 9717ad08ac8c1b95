"""PyTorch/XLA: operations are traced, and compiled as one graph per step by :class:`StepMark` at its end.

One process drives all devices of its host. With several devices, the compiler partitions the program (SPMD): batches
are split over a mesh with one axis, weights are replicated, and the compiler inserts the reductions of gradients.
Random numbers, batches and checkpoints are those of one process.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from trainwright.contract import UserError

WINDOW = 32
"""The number of recent steps that are checked for recompilations."""
TOO_MANY = 8
"""The number of recompiled steps within :data:`WINDOW` from which a warning is logged."""
FIRST_STEPS = 16
"""Steps whose compilation is normal: shapes of the first batches, accumulation, the last batch of an epoch."""


def is_used() -> bool:
    """Whether accelerate, and so the Trainer, uses torch_xla: it is installed, and USE_TORCH_XLA is not 0."""
    from accelerate.utils import is_torch_xla_available

    return bool(is_torch_xla_available())


def import_error() -> str | None:
    """Why torch_xla cannot be imported; None when it can."""
    try:
        importlib.import_module("torch_xla")
    except ImportError as error:
        return str(error)
    return None


def detect() -> tuple[str | None, int]:
    """Type and number of this host's devices: "xla" for TPUs, and for the device of PJRT_DEVICE in a test."""
    import torch_xla.runtime as runtime

    try:
        return "xla", int(runtime.addressable_runtime_device_count())
    except (RuntimeError, OSError):
        return None, 0


def initialize(use_cpu: bool) -> None:
    """Finds the devices of this host and enables SPMD if there are several. Further calls change nothing.

    Raises:
        UserError: torch_xla does not support the request, or there is no device.
    """
    import torch_xla.runtime as runtime

    if use_cpu:
        raise UserError(
            "use_cpu: torch_xla is used in every process if it is installed; set USE_TORCH_XLA=0, or leave use_cpu out"
        )
    hosts = max(_counted(runtime.process_count), int(os.environ.get("WORLD_SIZE", "1")))
    if hosts > 1:
        raise UserError(
            f"accelerator: torch_xla sees {hosts} hosts, but the Trainer drives only one; use a pool of one host, or "
            "the runtime torchtpu"
        )
    enable_spmd()


def enable_spmd() -> None:
    """Enables SPMD if there are several devices. Call before creating tensors on them, which would crash the process.

    Raises:
        UserError: there is no device.
    """
    import torch_xla.runtime as runtime

    if not runtime.is_spmd() and _counted(runtime.global_runtime_device_count) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that the devices were counted before this call
            runtime.use_spmd()


def _counted(count: Callable[[], int]) -> int:
    """A count of torch_xla, which fails if it finds no devices."""
    try:
        return int(count())
    except (RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        given = os.environ.get("PJRT_DEVICE", "unset")
        raise UserError(
            f"accelerator: torch_xla finds no device (PJRT_DEVICE is {given}: {reason}); run on a TPU, or set "
            "PJRT_DEVICE=CPU to try a job without one"
        ) from error


def device_count() -> int:
    """The number of devices that this process drives, over which a batch is split."""
    import torch_xla.runtime as runtime

    return int(runtime.addressable_runtime_device_count())


class Feed:
    """Moves host tensors to the devices, split along the first dimension.

    The compiler pads a dimension that is not divisible by the number of devices; the padding does not affect results.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._devices = device_count()
        self._specs: dict[int, Any] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._devices == 1 or tensor.dim() == 0 or tensor.device.type != "cpu":
            return tensor.to(self.device)
        import torch_xla.core.xla_model as xm

        sent: torch.Tensor = xm.send_cpu_data_to_device([tensor], self.device, self._spec(tensor.dim()))[0]
        return sent

    def _spec(self, dimensions: int) -> Any:
        if dimensions not in self._specs:
            import torch_xla.distributed.spmd as spmd

            self._specs[dimensions] = spmd.ShardingSpec(mesh(), ("data", *[None] * (dimensions - 1)))
        return self._specs[dimensions]


@functools.cache
def mesh() -> Any:
    """All devices of this host along one axis, ``data``."""
    import numpy as np
    import torch_xla.distributed.spmd as spmd

    count = device_count()
    return spmd.Mesh(np.arange(count), (count,), ("data",))


class StepMark:
    """Ends a graph: compiles it if it is new, and starts it on the device without waiting.

    Attributes:
        compiled: The number of graphs that were compiled at the end of steps so far.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        import torch_xla
        import torch_xla.debug.metrics as metrics

        self._sync, self._count = torch_xla.sync, metrics.counter_value
        self._warn: Callable[[str], None] | None = warn
        self._steps = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self.compiled = 0

    def __call__(self) -> None:
        self._sync()

    def end_step(self) -> None:
        """Ends an optimizer step, and warns if steps are still being recompiled."""
        before = self._compilations()
        self._sync()
        self._count_step(self._compilations() - before)

    def _count_step(self, compilations: int) -> None:
        self.compiled += compilations
        self._steps += 1
        if self._steps > FIRST_STEPS:
            self._recent.append(compilations > 0)
        if self._warn is not None and sum(self._recent) >= TOO_MANY:
            self._warn(
                f"{sum(self._recent)} of the last {len(self._recent)} steps were recompiled, because their batches "
                "differ in shape: pad them to one length or a few (pad_to_multiple_of), and drop the last short batch "
                "(dataloader_drop_last)"
            )
            self._warn = None

    def _compilations(self) -> int:
        return int(self._count("UncachedCompile") or 0)


def print_metrics() -> None:
    """Print torch_xla's counters: compilations, transfers, operations that ran on the CPU instead."""
    import torch_xla.debug.metrics as metrics

    print(metrics.metrics_report(), file=sys.stderr, flush=True)


def rng_state() -> int:
    """The state of the device's generator, as Hugging Face's Trainer saves it under ``xla``."""
    import torch_xla.core.xla_model as xm

    enable_spmd()
    return int(xm.get_rng_state())


def set_rng_state(state: int) -> None:
    import torch_xla.core.xla_model as xm

    enable_spmd()
    xm.set_rng_state(state)


def identity(tensor: torch.Tensor) -> Any:
    """An id that is equal for tensors that are the same on the device, where they have no address."""
    import torch_xla

    return torch_xla._XLAC._xla_get_tensor_id(tensor)


def peak_memory() -> int | None:
    """In bytes; None unless the device reports it, as a TPU without SPMD does."""
    import torch_xla.core.xla_model as xm

    try:
        peak = xm.get_memory_info().get("peak_bytes_used")
    except RuntimeError:
        return None
    return int(peak) if peak else None


def plain_kernels(kwargs: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's arguments, under torch_xla without ``fused``: it lacks that kernel and fuses operations itself."""
    if kwargs.get("fused") and "torch_xla" in sys.modules and is_used():
        return {name: value for name, value in kwargs.items() if name != "fused"}
    return kwargs
