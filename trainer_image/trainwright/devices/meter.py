"""Figures of the device for the log: use of its arithmetic, memory, compilations. Nothing on a CPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from trainwright.devices import xla
from trainwright.devices.peaks import peak_of, utilization
from trainwright.devices.report import device_name


class Meter:
    """What ``mfu``, ``peak_memory_gib`` and ``xla_compilations`` were since the last log.

    Args:
        device: Of this rank.
        devices: All that train together.
        mark: The step mark of torch_xla, if it is used.
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
        """Counts from here; ``operations`` are those of the whole run so far, of all devices."""
        self._operations, self._time = operations, self._clock()

    def read(self, operations: float) -> dict[str, float]:
        """What is known, and counts from here."""
        if self._device.type == "cpu":
            return {}
        figures = {
            "mfu": self._utilization(operations),
            "peak_memory_gib": _gib(peak_memory(self._device)),
            "xla_compilations": self._mark.compiled if self._mark is not None else None,
        }
        self.start(operations)
        return {name: value for name, value in figures.items() if value is not None}

    def _utilization(self, operations: float) -> float | None:
        if self._operations is None:
            return None
        done, seconds = operations - self._operations, self._clock() - self._time
        share = utilization(done, seconds, self._peak, self._devices)
        return None if share is None else round(share, 4)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took on this device at once; None where it does not tell."""
    if device.type == "xla":
        return xla.peak_memory()
    with contextlib.suppress(RuntimeError, NotImplementedError, AttributeError):
        return int(torch.accelerator.max_memory_allocated(device)) or None
    return None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 3)
