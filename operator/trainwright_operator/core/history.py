"""What the status remembers of a TrainingJob's attempts: the only memory that the policy has between two looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from trainwright.contract import MAX_ATTEMPTS, MAX_MESSAGE, MAX_ROUND_MESSAGE, PERMANENT, shorten
from trainwright_operator.api import names
from trainwright_operator.api.status import MAX_REASON
from trainwright_operator.core.times import read_time, write_time

LONG_AGO = datetime.fromtimestamp(0, UTC)
"""In the place of a start that somebody else wrote and no clock shows."""


class Outcome(StrEnum):
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"  # counts towards maxRestarts, unless its exit code is a permanent one
    DISRUPTED = "Disrupted"  # taken away by the cluster: never counted
    STOPPED = "Stopped"  # on request: a suspend or the deadline


@dataclass(frozen=True)
class Cause:
    """Why an attempt ended or is about to: the first pod to go, and what it said."""

    outcome: Outcome
    reason: str
    message: str = ""
    pod: str | None = None
    node: str | None = None
    exit_code: int | None = None
    time: datetime | None = None

    @property
    def permanent(self) -> bool:
        return self.outcome is Outcome.FAILED and self.exit_code in PERMANENT


@dataclass(frozen=True)
class Round:
    """An ended round of an attempt, after which its launchers restarted the ranks in place, in the same pods.

    ``node_rank`` tells which pod the first failure came from; ``reason``, ``pod`` and ``node`` are found when the
    operator has looked at the pods.
    """

    number: int
    end: datetime | None = None
    exit_code: int | None = None
    message: str = ""
    rank: int | None = None
    node_rank: int | None = None
    step: int | None = None
    reason: str = ""
    pod: str | None = None
    node: str | None = None

    def to_dict(self) -> dict[str, Any]:
        entry = {
            "round": self.number,
            "endTime": self.end and write_time(self.end),
            "reason": self.reason or None,
            "message": shorten(self.message, MAX_ROUND_MESSAGE) or None,
            "rank": self.rank,
            "nodeRank": self.node_rank,
            "pod": self.pod,
            "node": self.node,
            "exitCode": self.exit_code,
            "step": self.step,
        }
        return {key: value for key, value in entry.items() if value is not None}

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> Round:
        return Round(
            number=entry["round"],
            end=read_time(entry.get("endTime")),
            exit_code=entry.get("exitCode"),
            message=entry.get("message", ""),
            rank=entry.get("rank"),
            node_rank=entry.get("nodeRank"),
            step=entry.get("step"),
            reason=entry.get("reason", ""),
            pod=entry.get("pod"),
            node=entry.get("node"),
        )


@dataclass(frozen=True)
class Record:
    """One entry of ``status.attempts``. It is open until ``end``; a cause may be known before, while pods terminate."""

    number: int
    start: datetime
    end: datetime | None = None
    cause: Cause | None = None
    step: int | None = None
    max_steps: int | None = None
    num_train_epochs: float | None = None
    nodes: int | None = None
    """Of an elastic job: how many it has."""
    next_nodes: int | None = None
    """How many the next attempt has, because there was no room for all of these."""
    restarts: int = 0
    """How often its launchers restarted the ranks in place."""
    rounds: tuple[Round, ...] = ()
    """The newest of the rounds that ended so."""

    @property
    def outcome(self) -> Outcome | None:
        return self.cause.outcome if self.end and self.cause else None

    def to_dict(self) -> dict[str, Any]:
        cause = self.cause
        entry = {
            "attempt": self.number,
            "startTime": write_time(self.start),
            "endTime": self.end and write_time(self.end),
            "outcome": cause and cause.outcome.value,
            "reason": cause and cause.reason[:MAX_REASON],
            "message": (cause and shorten(cause.message, MAX_MESSAGE)) or None,
            "pod": cause and cause.pod,
            "node": cause and cause.node,
            "exitCode": cause.exit_code if cause else None,
            "time": cause and cause.time and write_time(cause.time),
            "step": self.step,
            "maxSteps": self.max_steps,
            "numTrainEpochs": self.num_train_epochs,
            "nodes": self.nodes,
            "nextNodes": self.next_nodes,
            "restartsInPlace": self.restarts or None,
            "rounds": [one.to_dict() for one in self.rounds] or None,
        }
        return {key: value for key, value in entry.items() if value is not None}

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> Record:
        return Record(
            number=entry["attempt"],
            start=read_time(entry["startTime"]) or LONG_AGO,
            end=read_time(entry.get("endTime")),
            cause=_cause(entry) if "outcome" in entry else None,
            step=entry.get("step"),
            max_steps=entry.get("maxSteps"),
            num_train_epochs=entry.get("numTrainEpochs"),
            nodes=entry.get("nodes"),
            next_nodes=entry.get("nextNodes"),
            restarts=entry.get("restartsInPlace", 0),
            rounds=tuple(map(Round.from_dict, entry.get("rounds") or ())),
        )

    def spans(self) -> Iterator[tuple[datetime, datetime]]:
        """Begin and end of the rounds of an ended attempt, the newest first, as far as they are known."""
        end = self.end
        for one in reversed(self.rounds):
            if one.end and end:
                yield one.end, end
                end = one.end
        if end:
            yield self.start, end


def _cause(entry: Mapping[str, Any]) -> Cause:
    return Cause(
        outcome=Outcome(entry["outcome"]),
        reason=entry.get("reason", ""),
        message=entry.get("message", ""),
        pod=entry.get("pod"),
        node=entry.get("node"),
        exit_code=entry.get("exitCode"),
        time=read_time(entry.get("time")),
    )


@dataclass(frozen=True)
class History:
    """All that the policy remembers: the newest attempts, the restarts made, and when the job began."""

    records: tuple[Record, ...] = ()
    counted: int = 0
    """Restarts after failures, those in place included."""
    disruptions: int = 0
    started: datetime | None = None
    running: bool = False
    """The open attempt has had all its pods ready."""
    reached: int | None = None
    """The last step that the open attempt told."""

    @property
    def last(self) -> Record | None:
        return self.records[-1] if self.records else None

    @property
    def open(self) -> Record | None:
        return self.last if self.last and self.last.end is None else None

    def begin(self, record: Record) -> History:
        """Open an attempt; it is counted as a restart by what ended the one before."""
        before = self.last.outcome if self.last else None
        return replace(
            self,
            records=(*self.records, record)[-MAX_ATTEMPTS:],
            counted=self.counted + (before is Outcome.FAILED),
            disruptions=self.disruptions + (before is Outcome.DISRUPTED),
            started=self.renewed.started or record.start,
            running=False,
            reached=None,
        )

    @property
    def renewed(self) -> History:
        """As it counts for what comes next: the deadline of what is added to a job that has trained begins anew."""
        return replace(self, started=None) if self.last and self.last.outcome is Outcome.SUCCEEDED else self

    def update(self, record: Record) -> History:
        """Replace the newest attempt's record."""
        return replace(self, records=(*self.records[:-1], record), running=self.running and record.end is None)

    @staticmethod
    def of(status: Mapping[str, Any]) -> History:
        restarts = status.get("restarts") or {}
        conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
        records = tuple(map(Record.from_dict, status.get("attempts") or ()))
        progress = status.get("progress") or {}
        pushed = bool(records) and progress.get("attempt") == records[-1].number
        return History(
            records=records,
            reached=progress.get("step") if pushed else None,
            counted=restarts.get("counted", 0),
            disruptions=restarts.get("disruptions", 0),
            started=read_time(status.get("startTime")),
            running=conditions.get(names.Condition.RUNNING) == "True",
        )
