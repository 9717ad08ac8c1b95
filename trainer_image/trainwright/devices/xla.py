"""PyTorch/XLA: operations are noted down and compiled as one graph for each step, by ``mark`` at its end.

One process drives all devices of its host. Where there are several, the program is written for one and partitioned
(SPMD): batches are split over a mesh of one axis, weights are kept on every device, and the compiler adds the sums over
gradients. Randomness, batches and checkpoints are those of one process.
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
"""Steps that are looked at to tell whether compiling has come to an end."""
TOO_MANY = 8
"""Of :data:`WINDOW` steps, those compiled anew from which on a run is warned of."""
FIRST_STEPS = 16
"""Steps whose compiling is nobody's fault: shapes of the first batches, accumulation, the last batch of an epoch."""


def is_used() -> bool:
    """Whether accelerate, and so the Trainer, computes by torch_xla: it is installed, and USE_TORCH_XLA is not 0."""
    from accelerate.utils import is_torch_xla_available

    return bool(is_torch_xla_available())


def import_error() -> str | None:
    """Why torch_xla cannot be imported; None when it can."""
    try:
        importlib.import_module("torch_xla")
    except ImportError as error:
        return str(error)
    return None


def look() -> tuple[str | None, int]:
    """Type and number of this host's devices: "xla" for TPUs, and for what PJRT_DEVICE names in a test."""
    import torch_xla.runtime as runtime

    try:
        return "xla", int(runtime.addressable_runtime_device_count())
    except (RuntimeError, OSError):
        return None, 0


def begin(use_cpu: bool) -> None:
    """Finds the devices of this host and chooses how they are driven. Doing it again changes nothing.

    Raises:
        UserError: what is asked for cannot be had under torch_xla, or there is no device.
    """
    import torch_xla.runtime as runtime

    if use_cpu:
        raise UserError(
            "use_cpu: torch_xla takes every process it is installed for; set USE_TORCH_XLA=0, or leave it out"
        )
    hosts = max(_asked(runtime.process_count), int(os.environ.get("WORLD_SIZE", "1")))
    if hosts > 1:
        raise UserError(
            f"accelerator: torch_xla sees {hosts} hosts, and the Trainer drives one; take a pool of one host, or the "
            "runtime torchtpu"
        )
    partition()


def partition() -> None:
    """Turns SPMD on where there are several devices. What was made on one of them before would crash the process.

    Raises:
        UserError: there is no device.
    """
    import torch_xla.runtime as runtime

    if not runtime.is_spmd() and _asked(runtime.global_runtime_device_count) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # counting the devices, it says, was one moment too early
            runtime.use_spmd()


def _asked(count: Callable[[], int]) -> int:
    """What torch_xla counts, which it can only where it finds its devices."""
    try:
        return int(count())
    except (RuntimeError, OSError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        given = os.environ.get("PJRT_DEVICE", "unset")
        raise UserError(
            f"accelerator: torch_xla finds no device (PJRT_DEVICE is {given}: {words}); run on a TPU, or set "
            "PJRT_DEVICE=CPU to try a job without one"
        ) from error


def device_count() -> int:
    """Devices that this process drives, and a batch is split over."""
    import torch_xla.runtime as runtime

    return int(runtime.addressable_runtime_device_count())


class Feed:
    """Brings tensors of the host to the devices, the first dimension split over them.

    A dimension that they do not divide is padded by the compiler, and the padding is not computed with.
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
    """Ends a graph: compiles it if it is new, and starts it on the device without waiting for it.

    Attributes:
        compiled: Graphs that were compiled by marks so far.
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
        """The mark at the end of an optimizer step, which also looks whether the steps keep being compiled."""
        before = self._compilations()
        self._sync()
        self._note(self._compilations() - before)

    def _note(self, compilations: int) -> None:
        self.compiled += compilations
        self._steps += 1
        if self._steps > FIRST_STEPS:
            self._recent.append(compilations > 0)
        if self._warn is not None and sum(self._recent) >= TOO_MANY:
            self._warn(
                f"{sum(self._recent)} of the last {len(self._recent)} steps were compiled anew, because their batches "
                "differ in shape: pad them to one length or a few (pad_to_multiple_of), and leave the last short one "
                "out (dataloader_drop_last)"
            )
            self._warn = None

    def _compilations(self) -> int:
        return int(self._count("UncachedCompile") or 0)


def print_metrics() -> None:
    """What torch_xla counted: compilations, transfers, operations that it gave back to the CPU."""
    import torch_xla.debug.metrics as metrics

    print(metrics.metrics_report(), file=sys.stderr, flush=True)


def rng_state() -> int:
    """Of the device's own generator, as Hugging Face's Trainer saves it under ``xla``."""
    import torch_xla.core.xla_model as xm

    partition()
    return int(xm.get_rng_state())


def set_rng_state(state: int) -> None:
    import torch_xla.core.xla_model as xm

    partition()
    xm.set_rng_state(state)


def identity(tensor: torch.Tensor) -> Any:
    """What tensors share that are one and the same on the device; they have no address of their own there."""
    import torch_xla

    return torch_xla._XLAC._xla_get_tensor_id(tensor)


def peak_memory() -> int | None:
    """Bytes, where the device tells them: a TPU that is driven without SPMD."""
    import torch_xla.core.xla_model as xm

    try:
        peak = xm.get_memory_info().get("peak_bytes_used")
    except RuntimeError:
        return None
    return int(peak) if peak else None


def plain_kernels(kwargs: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's arguments without ``fused`` under torch_xla, which has no such kernel and fuses by itself."""
    if kwargs.get("fused") and "torch_xla" in sys.modules and is_used():
        return {name: value for name, value in kwargs.items() if name != "fused"}
    return kwargs
