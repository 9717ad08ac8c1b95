"""Where the time of a run goes: seconds by cause, which every rank counts. Those of rank 0 are those of the job.

The training loop says what begins; what went on before ends. A change costs one reading of the clock and four stores.
Under a launcher the seconds lie in a file of the node's folder that is mapped into memory: they outlive a killed rank,
and the rank that takes its place goes on counting from them. What was interrupted, and the time until the new rank
began, is ``idle``.

All times are of the monotonic clock, which the processes of a pod share and nobody sets.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from array import array
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from trainwright.contract import CLOCK_CAUSES, ENV_REACHED_STEP
from trainwright.launch import nodefiles

STARTING, RESTORING, COMPILING, STEPPING, DATA, EVALUATING, SAVING, REDONE, IDLE = range(len(CLOCK_CAUSES))
_MARK, _STEP, _FIRST, _SAVE, _CAUSE = range(len(CLOCK_CAUSES), nodefiles.CLOCK_SLOTS)
_BYTES = 8 * nodefiles.CLOCK_SLOTS


class Clock:
    """Counts the seconds of one process by cause; ``path`` is the file that outlives it, None for none.

    Attributes:
        reached: Steps up to this one were trained before by a rank or attempt that was lost: they are redone.
        slowest: The rank that the others wait for, as :attr:`trainwright.contract.Progress.slowest`.
        anomalies: The steps that went wrong, as :attr:`trainwright.contract.Progress.anomalies`.
        used: Whether our loop trains in this process; another one does not say what begins.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._pid = path, os.getpid()
        self._slots: MutableSequence[float] = _mapped(path) if path else array("d", bytes(_BYTES))
        self._cause, self.used, self._save_began = STARTING, False, 0.0
        self.slowest: dict[str, float] | None = None
        self.anomalies: dict[str, Any] | None = None
        self.reached = max(_reached_by_former_attempts(), int(self._slots[_STEP]))
        self._begin()

    def _begin(self) -> None:
        """Count from the start of this process; the time since the last change of a former one was idle."""
        now, slots = perf_counter(), self._slots
        began, former = now - _age_of_process(), slots[_MARK]
        if former:
            began = min(now, max(began, former))
            slots[IDLE] += began - former
        slots[STARTING] += now - began
        slots[_MARK], slots[_CAUSE] = now, STARTING

    def enter(self, cause: int) -> int:
        """Begin ``cause``; return what went on before."""
        slots, now = self._slots, perf_counter()
        former = self._cause
        slots[former] += now - slots[_MARK]
        slots[_MARK] = now
        slots[_CAUSE] = self._cause = cause
        return former

    def fetch(self, step: int) -> None:
        """The batches of ``step`` are fetched."""
        self.enter(DATA if step > self.reached else REDONE)

    def train(self, step: int) -> None:
        """The batches of ``step`` are there, and the step begins."""
        self.enter(STEPPING if step > self.reached else REDONE)

    def done(self, step: int) -> None:
        """The weights of ``step`` are updated."""
        self.enter(self._cause)
        self._slots[_STEP] = step

    def begin(self, step: int) -> None:
        """Training begins after ``step``; the first time in this pod, the attempt resumed from there."""
        self.used = True
        if not any(self._slots[cause] for cause in (STEPPING, REDONE)):
            self._slots[_FIRST] = step

    def save_begins(self) -> None:
        self._save_began = perf_counter()

    def save_ends(self) -> None:
        """The checkpoint is complete: a pod that is asked to stop needs as long."""
        if self._save_began:
            self._slots[_SAVE] = max(self._slots[_SAVE], perf_counter() - self._save_began)
            self._save_began = 0.0

    @contextmanager
    def spending(self, cause: int) -> Iterator[None]:
        """What the body takes is of ``cause``."""
        former = self.enter(cause)
        try:
            yield
        finally:
            self.enter(former)

    def read(self) -> dict[str, float]:
        """As :attr:`trainwright.contract.Progress.clock`; ``open`` is not counted yet."""
        return {**nodefiles.clock_fields(self._slots), "open": round(perf_counter() - self._slots[_MARK], 3)}

    def follow_compilation(self) -> None:
        """Count what torch compiles, whenever it does, if something in this process uses its compiler."""
        if "torch._dynamo" not in sys.modules or self in _following:
            return
        with suppress(ImportError, AttributeError):
            from torch._dynamo.callback import callback_handler

            interrupted: list[int] = []

            def start(*_: object) -> None:
                interrupted.append(self.enter(COMPILING))

            def end(*_: object) -> None:
                if interrupted:
                    self.enter(interrupted.pop())

            callback_handler.register_start_callback(start)
            callback_handler.register_end_callback(end)
            _following.append(self)


_following: list[Clock] = []
_clock: Clock | None = None


def of_process() -> Clock:
    """The clock of this process. A forked process gets its own."""
    global _clock
    folder = nodefiles.node_dir()
    path = nodefiles.clock_path(folder, nodefiles.local_rank()) if folder is not None and folder.is_dir() else None
    if _clock is None or _clock._pid != os.getpid() or _clock.path != path:
        _clock = Clock(path)
    return _clock


def _mapped(path: Path) -> MutableSequence[float]:
    if nodefiles.read_clock(path.parent, nodefiles.local_rank()) is None:
        path.write_bytes(bytes(_BYTES))
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), _BYTES)).cast("d")  # type: ignore[return-value]


def _age_of_process() -> float:
    """Seconds since this process was started or forked; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _reached_by_former_attempts() -> int:
    text = os.environ.get(ENV_REACHED_STEP, "")
    return int(text) if text.isascii() and text.isdigit() else 0
