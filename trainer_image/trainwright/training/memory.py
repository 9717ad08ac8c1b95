"""Memory that a stage (init, train, eval, test) takes and what it peaks at, as metrics; only where it is asked for."""

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
    """Measures the outermost stage at work: an evaluation within training counts as training.

    ``<stage>_mem_cpu_alloc_delta`` is what the stage kept, ``..._peaked_delta`` what it took beside and gave back, in
    bytes. The same under ``gpu`` where there is an accelerator. The first stage measured tells of ``init`` too.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._stage: str | None = None
        self._untold: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, metrics: dict[str, float] | None = None) -> Iterator[dict[str, float]]:
        """Measure what happens inside; the yielded dict is what the metrics are added to, at the end."""
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
    """Resident memory of this process, looked at again and again on a thread of its own."""

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
    """:class:`MemoryTracker` by Hugging Face's names, for subclasses whose own ``evaluate`` or ``predict`` measures.

    A stage begins at :meth:`start`, is named by the method that called it, and ends at :meth:`stop_and_update_metrics`.
    """

    STAGES = {"__init__": "init", "train": "train", "evaluate": "eval", "predict": "test"}

    def __init__(self, skip_memory_metrics: bool = False, tracker: MemoryTracker | None = None) -> None:
        self.skip_memory_metrics = skip_memory_metrics
        self._tracker = MemoryTracker(skip_memory_metrics) if tracker is None else tracker
        self._open: tuple[str, ExitStack, dict[str, float]] | None = None

    def start(self) -> None:
        """Begin to measure; within a stage that is measured already, nothing."""
        caller = sys._getframe(1).f_code.co_name
        if caller not in self.STAGES:
            raise ValueError(f"TrainerMemoryTracker.start: call it from {', '.join(self.STAGES)}, not from {caller}")
        if self._open is None and not self.skip_memory_metrics:
            stack = ExitStack()
            self._open = caller, stack, stack.enter_context(self._tracker.stage(self.STAGES[caller]))

    def stop_and_update_metrics(self, metrics: dict[str, float] | None = None) -> None:
        """End what this method began, and add what was measured to ``metrics``."""
        if self._open is None or self._open[0] != sys._getframe(1).f_code.co_name:
            return
        (_, stack, measured), self._open = self._open, None
        stack.close()
        if metrics is not None:
            metrics.update(measured)
