"""Which rank of a node the others wait for when the gang hangs, from what each one was doing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainwright.launch import nodefiles

_DOES = {
    "data": "waits for its data",
    "evaluating": "evaluates",
    "saving": "saves",
    "compiling": "compiles",
    "restoring": "restores",
    "idle": "is between two trainings",
    "starting": "is starting",
}


def suspects(folder: Path, ranks: Mapping[int, tuple[int, int]], now: float) -> str:
    """``rank 3 waits for its data, for 612 s``; several are separated by commas.

    Args:
        ranks: Rank to its local rank and process.
        now: Monotonic, in seconds.
    """
    clocks = {rank: nodefiles.read_clock(folder, local) for rank, (local, _) in ranks.items()}
    stopped = [rank for rank, (_, pid) in ranks.items() if _state(pid) == "T"]
    if stopped:
        return ", ".join(f"rank {rank} is stopped (by SIGSTOP, or a debugger)" for rank in stopped)
    phases = {rank: nodefiles.phase_of(clock) for rank, clock in clocks.items()}
    elsewhere = {rank: phase for rank, phase in phases.items() if phase[0] in _DOES}
    if elsewhere:
        return ", ".join(
            f"rank {rank} {_DOES[what]}, for {now - since:.0f} s" for rank, (what, since) in elsewhere.items()
        )
    steps = {rank: nodefiles.clock_fields(clock)["step"] for rank, clock in clocks.items() if clock}
    behind = [rank for rank, step in steps.items() if step < max(steps.values())]
    if behind:
        return ", ".join(
            f"rank {rank} has finished step {steps[rank]:.0f}, others step {max(steps.values()):.0f}" for rank in behind
        )
    return f"every rank of this pod is within step {max(steps.values()) + 1:.0f}" if steps else ""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].upper()
    except (OSError, IndexError):
        return ""
