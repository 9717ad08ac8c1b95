"""How a pod ends: from the exits of its ranks, in their order, to one exit code and one line that says why.

Pure. The first failure counts; those that only say that a peer was lost do not hide it. A pod that was asked to stop
ends as preempted, never with 0, unless a rank failed before or of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainwright.contract import EndedBy, ExitCode, Termination

REASONS = {
    ExitCode.DONE: "Completed",
    ExitCode.BAD_CONFIGURATION: "BadConfiguration",
    ExitCode.BAD_DATA: "BadData",
    ExitCode.MISMATCH: "ImageMismatch",
    ExitCode.HANG: "Hang",
    ExitCode.PREEMPTED: "Preempted",
}


@dataclass(frozen=True)
class RankExit:
    """One rank's end. ``order`` sorts by time; ``secondary`` when it only tells that a peer was lost."""

    rank: int
    code: int
    order: float
    error: str | None = None
    secondary: bool = False


@dataclass(frozen=True)
class Failure:
    """What ended a gang first: the same words on every node. ``node`` and ``rank`` may be unknown.

    ``by`` is not told to others: what is a node's own failure is a peer's to them.
    """

    code: int
    error: str | None = None
    rank: int | None = None
    node: int | None = None
    by: EndedBy = EndedBy.SCRIPT


def first_failure(exits: Sequence[RankExit]) -> RankExit | None:
    """The failure that others followed from, as far as the exits tell."""
    failed = [end for end in exits if end.code not in (ExitCode.DONE, ExitCode.PREEMPTED)]
    return min(failed, key=lambda end: (end.secondary, end.order), default=None)


def judge(
    exits: Sequence[RankExit],
    *,
    stopped: EndedBy | None = None,
    hung: Failure | None = None,
    lost: Failure | None = None,
) -> Failure:
    """The end of this node.

    ``exits`` are those of ranks that ended by themselves; ``stopped`` says who asked the pod to stop before anything
    failed; ``lost`` is the failure that another node told of, or that it is gone.
    """
    if hung is not None:
        return hung
    first = first_failure(exits)
    if first is not None and not first.secondary:
        return replace(as_failure(first), by=stopped or EndedBy.SCRIPT)
    if lost is not None and lost.code != ExitCode.PREEMPTED:
        return replace(lost, by=stopped) if stopped is EndedBy.SIGNAL else lost
    if stopped is EndedBy.SIGNAL:
        return Failure(ExitCode.PREEMPTED, by=stopped)
    if lost is not None and (stopped is not EndedBy.SCRIPT or lost.error is None):
        return replace(lost, by=EndedBy.PEER)
    if any(end.code == ExitCode.PREEMPTED for end in exits):
        return unasked(exits)
    return replace(as_failure(first), by=EndedBy.LOST) if first is not None else Failure(ExitCode.DONE)


def unasked(exits: Sequence[RankExit]) -> Failure:
    """A stop for which nobody asked. That it has an ``error`` tells it, also on other nodes, from one that was."""
    rank = next(end.rank for end in exits if end.code == ExitCode.PREEMPTED)
    words = (
        f"rank {rank} ended with exit code {ExitCode.PREEMPTED:d} by itself: nobody had asked its pod to stop, so its "
        "script did, or a SIGTERM to that process alone"
    )
    return Failure(ExitCode.PREEMPTED, words, rank)


def as_failure(end: RankExit, node: int | None = None) -> Failure:
    return Failure(end.code, end.error or in_words(end.rank, end.code), end.rank, node)


def in_words(rank: int, code: int) -> str:
    """For a rank that left no word itself."""
    if code <= 128:
        return f"rank {rank} ended with exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"rank {rank} ended with exit code {code}"
    hint = "; most often the memory limit was reached" if name == "SIGKILL" else ""
    return f"rank {rank} was killed by {name} (exit code {code}){hint}"


def termination(end: Failure, report: dict[str, Any] | None = None, step: int | None = None) -> Termination:
    """The final word: ``report`` is rank 0's last one (none on other nodes), ``step`` what the heartbeats say."""
    report = report or {}
    checkpoint = report.get("checkpoint") or {}
    return Termination(
        reason=REASONS.get(end.code, "Error"),  # type: ignore[call-overload]
        exit_code=int(end.code),
        rank=end.rank,
        step=max(report.get("step") or 0, step or 0) or None,
        max_steps=report.get("max_steps"),
        epoch=report.get("epoch"),
        error=end.error,
        metrics=report.get("metrics") or {},
        checkpoint=checkpoint.get("path"),
        best=report.get("best"),
        ended_by=None if end.code == ExitCode.DONE else end.by,
    )
