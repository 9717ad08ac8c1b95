"""How the ranks of one node report to their launcher: small files in one private folder.

A rank updates its *heartbeat* at every step, writes an *error* when it fails and its *stacks* on request; rank 0 keeps
the last *report*. The launcher only reads these files, so neither side waits for the other. Standard library only.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainwright.contract import CLOCK_CAUSES, ENV_NODE_DIR

_HEARTBEAT_BYTES = 16


def node_dir() -> Path | None:
    """The folder of this node, or None without a launcher."""
    folder = os.environ.get(ENV_NODE_DIR)
    return Path(folder) if folder else None


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def heartbeat_path(folder: Path, local_rank: int) -> Path:
    return folder / f"heartbeat-{local_rank}"


def error_path(folder: Path, local_rank: int) -> Path:
    return folder / f"error-{local_rank}.json"


def stacks_path(folder: Path, local_rank: int) -> Path:
    return folder / f"stacks-{local_rank}.txt"


def report_path(folder: Path) -> Path:
    return folder / "report.json"


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new one. Not flushed to disk, because the folder is lost with the pod anyway."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise


RESTING = -1
"""Instead of a step: the watchdog expects no beat until the next one."""


class Heartbeat:
    """Two counters shared with the launcher through memory: beats, and the step last finished.

    A beat costs two stores into a mapped page.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_HEARTBEAT_BYTES))
        with path.open("r+b") as file:
            self._counters = memoryview(mmap.mmap(file.fileno(), _HEARTBEAT_BYTES)).cast("q")
        self._beats = 0

    def beat(self, step: int) -> None:
        """Records that this rank is alive and has finished ``step``; :data:`RESTING` pauses the watchdog."""
        self._beats = beats = self._beats + 1
        counters = self._counters
        if step >= 0:
            counters[1] = step
            counters[0] = beats
        else:
            counters[0] = -beats


@dataclass(frozen=True)
class Pulse:
    """A heartbeat as the launcher sees it. ``beats`` is 0 before the first one.

    ``phase`` is what the rank does (:data:`CLOCK_CAUSES`); empty if it does not say, as with another trainer than ours.
    """

    beats: int
    step: int
    resting: bool
    phase: str = ""


def read_pulse(path: Path) -> Pulse:
    try:
        counters = memoryview(path.read_bytes()).cast("q")
        phase, _ = phase_of(read_clock(path.parent, int(path.name.rpartition("-")[2])))
        return Pulse(abs(counters[0]), counters[1], counters[0] <= 0, phase)
    except (OSError, IndexError, TypeError):
        return Pulse(0, 0, True)


@dataclass(frozen=True)
class RankError:
    """Why a rank failed, in one line.

    ``secondary``: the error only reports that a peer was lost, not why; ``time`` is in seconds since the epoch.
    """

    rank: int
    exit_code: int
    error: str
    secondary: bool = False
    time: float = 0.0

    def write(self, folder: Path, local_rank: int) -> None:
        write_atomically(error_path(folder, local_rank), json.dumps({**asdict(self), "time": time.time()}))


def read_error(folder: Path, local_rank: int) -> RankError | None:
    try:
        return RankError(**json.loads(error_path(folder, local_rank).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def new_round(folder: Path, number: int) -> Path:
    """A folder for a round of the attempt whose folder this is."""
    own = folder / f"round-{number}"
    own.mkdir()
    return own


def read_report(folder: Path, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The last report of rank 0: the fields of :class:`trainwright.contract.Progress`.

    Its ``clock`` is newer than the report: the file of the clock holds all until rank 0 ended. If there is no report,
    ``before`` takes its place, that of the round before; it is empty if there is none.
    """
    try:
        report = json.loads(report_path(folder).read_text())
    except (OSError, ValueError):
        report = None
    if not isinstance(report, dict):
        report = before or {}
    if not report:
        return {}
    slots = read_clock(folder)
    return {**report, "clock": clock_fields(slots) if slots else None}


CLOCK_SLOTS = len(CLOCK_CAUSES) + 5
"""Float64 numbers in the file of a clock: the seconds of each cause, when the current one began (monotonic; 0 if
never), the last finished step, the step that the attempt resumed from, the longest save, and the current cause."""


def clock_path(folder: Path, local_rank: int = 0) -> Path:
    """One file for all rounds of a pod, whose folders are called ``round-N``: a new rank goes on counting."""
    return (folder.parent if folder.name.startswith("round-") else folder) / f"clock-{local_rank}"


def read_clock(folder: Path, local_rank: int = 0) -> list[float] | None:
    """The numbers in the file of a rank's clock; None if it is absent or torn, or was never started."""
    try:
        slots = list(memoryview(clock_path(folder, local_rank).read_bytes()).cast("d"))
    except (OSError, TypeError):
        return None
    valid = len(slots) == CLOCK_SLOTS and all(math.isfinite(slot) and slot >= 0 for slot in slots)
    return slots if valid and slots[len(CLOCK_CAUSES)] else None


def phase_of(slots: Sequence[float] | None) -> tuple[str, float]:
    """What a rank does, one of :data:`CLOCK_CAUSES`, and since when (monotonic); empty and 0 if it says nothing."""
    if slots is None or not slots[-1] < len(CLOCK_CAUSES):
        return "", 0.0
    return CLOCK_CAUSES[int(slots[-1])], slots[len(CLOCK_CAUSES)]


def clock_fields(slots: Sequence[float]) -> dict[str, float]:
    """As :class:`trainwright.contract.Progress` sends a clock, without ``open``."""
    seconds = {name: round(slots[cause], 3) for cause, name in enumerate(CLOCK_CAUSES)}
    counted = {name: value for name, value in seconds.items() if value > 0}
    _, step, first, save, _ = slots[len(CLOCK_CAUSES) :]
    return {**counted, "step": int(step), "first": int(first), **({"save": round(save, 3)} if save else {})}
