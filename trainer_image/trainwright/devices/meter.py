"""Device metrics for the log: utilization, peak memory, compilations. Nothing on a CPU.

The peak of a device is its rate of dense bfloat16 operations with float32 accumulation, in operations per second, as
published by the vendors: NVIDIA's data sheets of each product (half of the value "with sparsity" if only that one is
given), AMD's data sheets of the Instinct series, Google's pages cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. It is
per device as torch counts devices: an MI250 counts as two, and so does a chip of TPU7x.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from trainwright.devices import xla
from trainwright.devices.report import device_name


class Meter:
    """Measures ``mfu``, ``peak_memory_gib`` and ``xla_compilations`` since the last log.

    Args:
        device: The device of this rank.
        devices: The number of devices that train together.
        mark: The step mark of torch_xla, if used.
    """

    def __init__(
        self,
        device: torch.device,
        devices: int,
        mark: xla.StepMark | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._devices, self._mark, self._clock = device, devices, mark, clock
        self._peak = None if device.type == "cpu" else peak_of(device_name(device))
        self._operations: float | None = None
        self._time = 0.0

    def start(self, operations: float) -> None:
        """Starts an interval; ``operations`` is the count of the whole run so far, over all devices."""
        self._operations, self._time = operations, self._clock()

    def read(self, operations: float) -> dict[str, float]:
        """The known metrics of this interval; starts the next one."""
        if self._device.type == "cpu":
            return {}
        metrics = {
            "mfu": self._utilization(operations),
            "peak_memory_gib": _gib(peak_memory(self._device)),
            "xla_compilations": self._mark.compiled if self._mark is not None else None,
        }
        self.start(operations)
        return {name: value for name, value in metrics.items() if value is not None}

    def _utilization(self, operations: float) -> float | None:
        if self._operations is None:
            return None
        done, seconds = operations - self._operations, self._clock() - self._time
        share = utilization(done, seconds, self._peak, self._devices)
        return None if share is None else round(share, 4)


def peak_memory(device: torch.device) -> int | None:
    """The peak memory of tensors on this device, in bytes; None if the device does not report it."""
    if device.type == "xla":
        return xla.peak_memory()
    with contextlib.suppress(RuntimeError, NotImplementedError, AttributeError):
        return int(torch.accelerator.max_memory_allocated(device)) or None
    return None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 3)


TERA = 1e12

PEAKS: dict[str, float] = {
    # NVIDIA, by torch.cuda.get_device_name()
    "GB300": 2500 * TERA,
    "GB200": 2500 * TERA,
    "B300": 2250 * TERA,
    "B200": 2250 * TERA,
    "GH200": 989.5 * TERA,
    "H200": 989.5 * TERA,
    "H100 PCIe": 756.5 * TERA,
    "H100 NVL": 835.5 * TERA,
    "H100": 989.5 * TERA,
    "H20": 148 * TERA,
    "A100": 312 * TERA,
    "A40": 149.7 * TERA,
    "A30": 165 * TERA,
    "A10G": 70 * TERA,
    "A10": 125 * TERA,
    "L40S": 362 * TERA,
    "L40": 181 * TERA,
    "L4": 121 * TERA,
    # AMD
    "MI355X": 2516.6 * TERA,
    "MI350X": 2306.9 * TERA,
    "MI325X": 1307.4 * TERA,
    "MI300X": 1307.4 * TERA,
    "MI300A": 980.6 * TERA,
    "MI250X": 191.5 * TERA,
    "MI250": 181 * TERA,
    "MI210": 181 * TERA,
    # TPU, by the name of its generation
    "TPU7x": 1153.5 * TERA,
    "TPU v7": 1153.5 * TERA,
    "TPU v6e": 918 * TERA,
    "TPU v6 lite": 918 * TERA,
    "TPU v5p": 459 * TERA,
    "TPU v5e": 197 * TERA,
    "TPU v5 lite": 197 * TERA,
    "TPU v5litepod": 197 * TERA,
    "TPU v4": 275 * TERA,
}
"""Part of a device's name -> operations per second."""


def peak_of(name: str) -> float | None:
    """The peak of the device with this name; None if unknown, or for a part of a device (MIG)."""
    tokens = _tokens(name)
    if "mig" in tokens:
        return None
    known = (key for key in PEAKS if _contains(tokens, _tokens(key)))
    longest = max(known, key=len, default=None)
    return None if longest is None else PEAKS[longest]


def utilization(operations: float, seconds: float, peak: float | None, devices: int) -> float | None:
    """Model FLOPs utilization: the fraction (0 to 1) of the peak of ``devices``; None if unknown.

    ``operations`` is the count of the model itself, over all devices: recomputed activations do not count.
    """
    if peak is None or operations <= 0 or seconds <= 0:
        return None
    return operations / (seconds * peak * devices)


def _tokens(name: str) -> list[str]:
    return name.lower().replace("-", " ").replace("/", " ").split()


def _contains(tokens: list[str], part: list[str]) -> bool:
    return any(tokens[start : start + len(part)] == part for start in range(len(tokens)))
