"""How a pod ends: turns the exits of its ranks into one exit code and a reason in one line.

Pure. The first failure counts; failures that only report a lost peer do not hide it. A pod that was asked to stop ends
as preempted, never with 0, unless a rank failed before or for its own reason.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainwright.contract import MAX_ROUNDS, EndedBy, ExitCode, RoundEnd, Termination

REASONS = {
    ExitCode.DONE: "Completed",
    ExitCode.BAD_CONFIGURATION: "BadConfiguration",
    ExitCode.BAD_DATA: "BadData",
    ExitCode.MISMATCH: "ImageMismatch",
    ExitCode.HANG: "Hang",
    ExitCode.PREEMPTED: "Preempted",
}

MOST_NAMED = 8
"""Ranks in a message."""


@dataclass(frozen=True)
class RankExit:
    """How a rank ended. ``order`` sorts by time; ``secondary``: the error only reports that a peer was lost."""

    rank: int
    code: int
    order: float
    error: str | None = None
    secondary: bool = False


@dataclass(frozen=True)
class Failure:
    """The first failure of a gang, with the same message on every node. ``node`` and ``rank`` may be unknown.

    ``by`` is not sent to other nodes: a node's own failure is a peer's failure to them.
    """

    code: int
    error: str | None = None
    rank: int | None = None
    node: int | None = None
    by: EndedBy = EndedBy.SCRIPT


def first_failure(exits: Sequence[RankExit]) -> RankExit | None:
    """The failure that caused the others, as far as the exits show."""
    failed = [end for end in exits if end.code not in (ExitCode.DONE, ExitCode.PREEMPTED)]
    return min(failed, key=lambda end: (end.secondary, end.order), default=None)


def decide(
    exits: Sequence[RankExit],
    *,
    stopped: EndedBy | None = None,
    hung: Failure | None = None,
    lost: Failure | None = None,
) -> Failure:
    """How this node ends.

    ``exits`` are those of ranks that the launcher did not kill; ``stopped`` says who asked the pod to stop before any
    failure; ``lost`` is the failure that another node reported, or the loss of that node.
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
        return unrequested_stop(exits)
    return replace(as_failure(first), by=EndedBy.LOST) if first is not None else Failure(ExitCode.DONE)


def unrequested_stop(exits: Sequence[RankExit]) -> Failure:
    """A stop that nobody requested. Its ``error`` distinguishes it from a requested one, also on other nodes.

    Ranks that train together agree to stop, so if several did, nobody knows which one began.
    """
    ranks = sorted({end.rank for end in exits if end.code == ExitCode.PREEMPTED})
    if len(ranks) > 1:
        named = ", ".join(map(str, ranks[:MOST_NAMED])) + (" and others" if len(ranks) > MOST_NAMED else "")
        message = (
            f"ranks {named} ended with exit code {ExitCode.PREEMPTED:d}, though nobody asked their pod to stop: the "
            "script exited with that code by itself, or one of these processes alone got a SIGTERM"
        )
        return Failure(ExitCode.PREEMPTED, message)
    message = (
        f"rank {ranks[0]} ended with exit code {ExitCode.PREEMPTED:d} by itself: nobody asked its pod to stop, so its "
        "script exited with that code, or that process alone got a SIGTERM"
    )
    return Failure(ExitCode.PREEMPTED, message, ranks[0])


def as_failure(end: RankExit, node: int | None = None) -> Failure:
    return Failure(end.code, end.error or exit_message(end.rank, end.code), end.rank, node)


def exit_message(rank: int, code: int) -> str:
    """The message for a rank that wrote none itself."""
    if code <= 128:
        return f"rank {rank} ended with exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"rank {rank} ended with exit code {code}"
    hint = "; the usual reason is that it reached the memory limit" if name == "SIGKILL" else ""
    return f"rank {rank} was killed by {name} (exit code {code}){hint}"


def termination(
    end: Failure, report: dict[str, Any] | None = None, step: int | None = None, rounds: Sequence[RoundEnd] = ()
) -> Termination:
    """The termination message.

    ``report`` is rank 0's last one (None on other nodes), ``step`` the heartbeats' last, ``rounds`` those that ended
    before the last one.
    """
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
        clock=report.get("clock"),
        anomalies=report.get("anomalies"),
        round=len(rounds) + 1 if rounds else None,
        rounds=[one.to_wire() for one in rounds[-MAX_ROUNDS:]],
    )
