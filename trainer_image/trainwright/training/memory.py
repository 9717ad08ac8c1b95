"""Metrics of the memory that a stage (init, train, eval, test) keeps and of its peak, if enabled."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

SAMPLE_SECONDS = 0.005


class MemoryTracker:
    """Measures the outermost active stage: an evaluation during training counts as training.

    ``<stage>_mem_cpu_alloc_delta`` is the memory in bytes that the stage kept; ``..._peaked_delta`` is the additional
    memory at its peak, freed afterwards. With an accelerator there are the same metrics with ``gpu``. The first
    measured stage reports ``init`` too.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._stage: str | None = None
        self._untold: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, metrics: dict[str, float] | None = None) -> Iterator[dict[str, float]]:
        """Measure the body; metrics are added to the yielded dict at the end."""
        metrics = {} if metrics is None else metrics
        if self.skip or self._stage is not None:
            yield metrics
            return
        self._stage = name
        before, cpu = _accelerator_memory(reset=True), _Peak()
        try:
            yield metrics
        finally:
            self._stage = None
            measured = cpu.stop(name)
            if before is not None:
                measured |= _accelerator_deltas(name, before)
            self._tell(name, measured, metrics)

    def _tell(self, name: str, measured: dict[str, float], metrics: dict[str, float]) -> None:
        if name == "init":
            self._untold = measured
        else:
            metrics.update(self._untold | measured)
            self._untold = {}


class _Peak:
    """Peak resident memory of this process, polled on a separate thread."""

    def __init__(self) -> None:
        import psutil

        gc.collect()
        self._process = psutil.Process()
        self._before = self._peak = self._used()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def _used(self) -> int:
        used: int = self._process.memory_info().rss
        return used

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._used())

    def stop(self, stage: str) -> dict[str, float]:
        self._peak = max(self._peak, self._used())
        self._done.set()
        self._thread.join()
        gc.collect()
        after = self._used()
        measured: dict[str, float] = {
            f"{stage}_mem_cpu_alloc_delta": after - self._before,
            f"{stage}_mem_cpu_peaked_delta": max(0, self._peak - after),
        }
        return measured | ({"before_init_mem_cpu": self._before} if stage == "init" else {})


def _accelerator_memory(reset: bool = False) -> int | None:
    if not torch.accelerator.is_available():
        return None
    if reset:
        torch.accelerator.reset_peak_memory_stats()
    return torch.accelerator.memory_allocated()


def _accelerator_deltas(stage: str, before: int) -> dict[str, Any]:
    now, peak = torch.accelerator.memory_allocated(), torch.accelerator.max_memory_allocated()
    measured = {f"{stage}_mem_gpu_alloc_delta": now - before, f"{stage}_mem_gpu_peaked_delta": max(0, peak - now)}
    return measured | ({"before_init_mem_gpu": before} if stage == "init" else {})


class TrainerMemoryTracker:
    """:class:`MemoryTracker` with Hugging Face's names, for subclasses that measure in ``evaluate`` or ``predict``.

    A stage begins at :meth:`start`, takes its name from the caller, and ends at :meth:`stop_and_update_metrics`.
    """

    STAGES = {"__init__": "init", "train": "train", "evaluate": "eval", "predict": "test"}

    def __init__(self, skip_memory_metrics: bool = False, tracker: MemoryTracker | None = None) -> None:
        self.skip_memory_metrics = skip_memory_metrics
        self._tracker = MemoryTracker(skip_memory_metrics) if tracker is None else tracker
        self._open: tuple[str, ExitStack, dict[str, float]] | None = None

    def start(self) -> None:
        """Start to measure; do nothing inside a stage that is measured already."""
        caller = sys._getframe(1).f_code.co_name
        if caller not in self.STAGES:
            raise ValueError(f"TrainerMemoryTracker.start: call it from {', '.join(self.STAGES)}, not from {caller}")
        if self._open is None and not self.skip_memory_metrics:
            stack = ExitStack()
            self._open = caller, stack, stack.enter_context(self._tracker.stage(self.STAGES[caller]))

    def stop_and_update_metrics(self, metrics: dict[str, float] | None = None) -> None:
        """End the stage of this method, and add its measurements to ``metrics``."""
        if self._open is None or self._open[0] != sys._getframe(1).f_code.co_name:
            return
        (_, stack, measured), self._open = self._open, None
        stack.close()
        if metrics is not None:
            metrics.update(measured)
