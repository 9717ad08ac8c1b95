"""The Events of a transition, for ``kubectl describe``: what the new status says that the one before did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainwright_operator.api.names import Condition, Reason
from trainwright_operator.core import display
from trainwright_operator.core.history import Outcome, Record, Round
from trainwright_operator.core.policy import describe, describe_round

_TYPES = {
    Condition.QUEUED: "Warning",
    Condition.RUNNING: "Normal",
    Condition.SUSPENDED: "Normal",
    Condition.SUCCEEDED: "Normal",
    Condition.FAILED: "Warning",
    Condition.STALLED: "Warning",
}


@dataclass(frozen=True)
class Event:
    type: str
    reason: str
    message: str


def events(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Event, ...]:
    return (
        *_of_attempts(before, after),
        *_of_conditions(before, after),
        *_of_gang(before, after),
        *_of_nodes(before, after),
        *_of_ranks(before, after),
        *_of_steps(before, after),
    )


def _of_attempts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    known = {entry["attempt"]: entry for entry in before.get("attempts") or ()}
    found: list[Event] = []
    for entry in after.get("attempts") or ():
        record = Record.from_dict(entry)
        was = known.get(record.number)
        if was is None:
            found.append(Event("Normal", "AttemptStarted", f"attempt {record.number} was created"))
        found += _of_rounds(record, Record.from_dict(was).rounds if was else ())
        if record.end and not (was and "endTime" in was):
            found += _of_end(record)
    return found


def _of_rounds(record: Record, before: tuple[Round, ...]) -> list[Event]:
    known = {one.number for one in before if one.reason}
    new = [one for one in record.rounds if one.reason and one.number not in known]
    return [Event("Warning", Reason.RESTARTED_IN_PLACE, describe_round(record, one)) for one in new]


def _of_end(record: Record) -> list[Event]:
    if record.outcome is Outcome.FAILED:
        return [Event("Warning", Reason.ATTEMPT_FAILED, describe(record))]
    if record.outcome is Outcome.DISRUPTED:
        return [Event("Warning", Reason.ATTEMPT_DISRUPTED, describe(record))]
    return []


def _of_conditions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    held = {one["type"] for one in before.get("conditions") or () if one["status"] == "True"}
    holds = {one["type"]: one for one in after.get("conditions") or () if one["status"] == "True"}
    if Condition.FAILED in holds:
        holds.pop(Condition.STALLED, None)
    return [
        Event(_TYPES[kind], kind, f"{one['reason']}: {one['message']}")
        for kind, one in holds.items()
        if kind in _TYPES and kind not in held
    ]


def _of_gang(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    was, now = (_not_met(status) for status in (before, after))
    return [Event("Warning", Reason.PODS_NOT_MET, now)] if now and not was else []


def _of_nodes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    known = {one["node"] for one in before.get("avoidedNodes") or ()}
    return [
        Event("Warning", Reason.NODE_AVOIDED, f"node {one['node']} is avoided from now on: {one.get('why', '')}")
        for one in after.get("avoidedNodes") or ()
        if one["node"] not in known
    ]


def _of_ranks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    was, now = (status.get("slowest") or {} for status in (before, after))
    if not now or "pod" not in now or ("pod" in was and _same(was, now, "attempt", "rank")):
        return []
    where = f"rank {now['rank']} in {now['pod']}" + (f" on {now['node']}" if "node" in now else "")
    message = f"{where} takes {now['factor']:.1f} times as long for its part of a step as the others, which wait for it"
    return [Event("Warning", Reason.SLOW_RANK, message)]


def _of_steps(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    """The first step that went wrong; the others are counted in the status."""
    was, now = (status.get("anomalies") or {} for status in (before, after))
    return [Event("Warning", Reason.ANOMALY, display.anomalies(after))] if "since" in now and "since" not in was else []


def _same(one: Mapping[str, Any], other: Mapping[str, Any], *fields: str) -> bool:
    return all(one.get(field) == other.get(field) for field in fields)


def _not_met(status: Mapping[str, Any]) -> str:
    found = (one["message"] for one in status.get("conditions") or () if one["reason"] == Reason.PODS_NOT_MET)
    return next(found, "")
