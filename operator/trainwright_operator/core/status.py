"""The status that is written: a word, conditions for people and tools, counts, attempts, and what the trainers told.

Conditions follow kstatus: ``Reconciling`` until the pods are ready and no longer, ``Stalled`` in its place when only a
person can help. A job at work is Current to GitOps tools, or they would time out on every long run. A condition appears
when it first holds, and keeps its transition time until it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from trainwright.contract import MAX_MESSAGE, shorten
from trainwright_operator.api.names import Condition
from trainwright_operator.api.status import MAX_WHY
from trainwright_operator.core import display
from trainwright_operator.core.avoidance import avoided
from trainwright_operator.core.history import History
from trainwright_operator.core.observe import Attempt
from trainwright_operator.core.policy import FINISHED, Phase, Verdict
from trainwright_operator.core.progress import Status, merge_final_word, merge_progress
from trainwright_operator.core.times import read_time, write_time
from trainwright_operator.core.waiting import Hold

__all__ = ["merge_final_word", "merge_progress", "render"]

_KEPT = ("metrics", "memory", "best", "checkpoint", "runs", "model", "goodput", "acceleratorSeconds", "cost")
"""What others than the policy have found out."""
_EXPLAINED = frozenset({Phase.PENDING, Phase.RESTARTING, Phase.FAILED})
"""Where the word of the state alone leaves a person asking."""

_TRUE: Mapping[Phase, tuple[str, ...]] = {
    Phase.PENDING: (Condition.RECONCILING,),
    Phase.STARTING: (Condition.RECONCILING,),
    Phase.RUNNING: (Condition.RUNNING,),
    Phase.RESTARTING: (Condition.RECONCILING, Condition.RESTARTING),
    Phase.STOPPING: (Condition.RECONCILING,),
    Phase.SUSPENDED: (Condition.SUSPENDED,),
    Phase.SUCCEEDED: (Condition.SUCCEEDED,),
    Phase.FAILED: (Condition.FAILED, Condition.STALLED),
}


def render(
    before: Mapping[str, Any],
    generation: int,
    verdict: Verdict,
    attempt: Attempt | None,
    hold: Hold | None,
    now: datetime,
    desired: int | None = None,
) -> Status:
    """The whole status. ``attempt`` is the one at work, ``desired`` the number of pods of one that is being created."""
    history, phase = verdict.history, verdict.phase
    finished = phase in FINISHED
    started, completed = history.started, _completed(before, history, now) if finished else None
    status: Status = {
        **{key: before[key] for key in _KEPT if key in before},
        "gang": _gang(before, history),
        "observedGeneration": generation,
        "state": _state(phase, hold),
        "conditions": _conditions(before, generation, verdict, attempt, hold, now),
        "nodes": _nodes(before, attempt, desired),
        "restarts": {
            "total": history.counted + history.disruptions,
            "counted": history.counted,
            "disruptions": history.disruptions,
        },
        "attempts": [record.to_dict() for record in history.records],
        "slowest": _slowest(before, history, attempt),
        "anomalies": _anomalies(before, now),
        "avoidedNodes": avoided(history.records, before.get("avoidedNodes") or ()),
        "progress": _progress(before, phase),
        "startTime": started and write_time(started),
        "completionTime": completed and write_time(completed),
    }
    status["display"] = _display(before, status, verdict, hold, now)
    return {key: value for key, value in status.items() if value not in (None, {}, [])}


def with_obstacle(status: Mapping[str, Any], why: str) -> Status:
    """The same status, with the words for what is in the way of what is being done, if anything is."""
    conditions = [
        {**one, "message": shorten(f"{one['message']}; {why}", MAX_MESSAGE)}
        if one["type"] == Condition.RECONCILING and one["status"] == "True"
        else one
        for one in status.get("conditions") or ()
    ]
    return {**status, "conditions": conditions} if conditions else dict(status)


def _state(phase: Phase, hold: Hold | None) -> str:
    return "Queued" if hold and hold.queued and phase is Phase.STARTING else phase.value


def _completed(before: Mapping[str, Any], history: History, now: datetime) -> datetime:
    """When the last attempt ended; a job that failed between two attempts is complete when that was first seen."""
    return read_time(before.get("completionTime")) or now


def _progress(before: Mapping[str, Any], phase: Phase) -> Status:
    """What was told last; a rate and an expected end are told of a job at work alone."""
    fleeting = () if phase is Phase.RUNNING else ("endTime", "samplesPerSecond", "tokensPerSecond", "activity")
    return {key: value for key, value in (before.get("progress") or {}).items() if key not in fleeting}


def _gang(before: Mapping[str, Any], history: History) -> Status | None:
    """What node 0 of the attempt at work told of the others."""
    gang: Status = before.get("gang") or {}
    return gang if history.open and gang.get("attempt") == history.open.number else None


def _slowest(before: Mapping[str, Any], history: History, attempt: Attempt | None) -> Status | None:
    """The slow rank of the newest attempt, with the pod that it runs in."""
    found: Status = before.get("slowest") or {}
    if not found or not history.last or found.get("attempt") != history.last.number:
        return None
    pod = attempt.pod_of(found["rank"]) if attempt else None
    return {**found, "pod": pod.name, **({"node": pod.node} if pod.node else {})} if pod else found


def _anomalies(before: Mapping[str, Any], now: datetime) -> Status:
    """The steps that went wrong, with the time at which the operator first heard of one."""
    found: Status = before.get("anomalies") or {}
    return {"since": write_time(now), **found} if found else {}


def _nodes(before: Mapping[str, Any], attempt: Attempt | None, desired: int | None) -> Status:
    """A pod that is yet to be created counts as active: pods that appear one by one are no reason to write."""
    pods = attempt.pods if attempt else ()
    at_work = desired or (attempt.desired if attempt else 0)
    ended = sum(pod.end is not None for pod in pods)
    return {
        "desired": at_work or (before.get("nodes") or {}).get("desired", 0),
        "ready": sum(pod.ready and pod.end is None for pod in pods),
        "active": max(at_work, len(pods)) - ended,
        "failed": sum(pod.end is not None and pod.end.exit_code != 0 for pod in pods),
    }


def _display(
    before: Mapping[str, Any], status: Status, verdict: Verdict, hold: Hold | None, now: datetime
) -> dict[str, str]:
    reason = hold.reason if hold else verdict.reason if verdict.phase in (Phase.FAILED, Phase.PENDING) else None
    why = hold.message if hold else verdict.message if verdict.phase in _EXPLAINED else display.not_finite(status)
    shown = {
        "state": f"{status['state']} ({reason})"[:64] if reason else status["state"],
        **display.training(status),
        "restarts": display.restarts(verdict.history.counted, verdict.history.disruptions),
        "nodes": f"{status['nodes']['ready']}/{status['nodes']['desired']}",
        **({"why": shorten(why, MAX_WHY)} if why else {}),
        **({"slowest": slow} if (slow := display.slow(status)) else {}),
    }
    if verdict.phase is Phase.RUNNING and (ends := (before.get("display") or {}).get("ends")):
        shown["ends"] = ends
    if completed := read_time(status["completionTime"]):
        shown["ends"] = display.clock(
            completed.astimezone(now.tzinfo), (verdict.history.started or completed).astimezone(now.tzinfo)
        )
    return shown


# Conditions


def _conditions(
    before: Mapping[str, Any],
    generation: int,
    verdict: Verdict,
    attempt: Attempt | None,
    hold: Hold | None,
    now: datetime,
) -> list[Status]:
    known = {one["type"]: one for one in before.get("conditions") or ()}
    holding = _holding(verdict, attempt, hold)
    if (lost := display.not_finite(before)) and (trains := {Condition.RUNNING, Condition.SUCCEEDED} & holding.keys()):
        holding |= {kind: (holding[kind][0], f"{holding[kind][1]}; {lost}") for kind in trains}
    types = [kind for kind in _ORDER if kind in known or kind in holding]
    return [
        _condition(kind, known.get(kind, {}), generation, holding.get(kind), verdict.phase.value, now) for kind in types
    ]


_ORDER = (
    Condition.QUEUED,
    Condition.PODS_READY,
    Condition.RUNNING,
    Condition.RESTARTING,
    Condition.SUSPENDED,
    Condition.SUCCEEDED,
    Condition.FAILED,
    Condition.RECONCILING,
    Condition.STALLED,
)


def _holding(verdict: Verdict, attempt: Attempt | None, hold: Hold | None) -> dict[str, tuple[str, str]]:
    """The conditions that are true, each with its reason and message."""
    word = (hold.reason, hold.message) if hold else (verdict.reason, verdict.message)
    holding = dict.fromkeys(_TRUE[verdict.phase], word)
    if verdict.phase is Phase.RESTARTING:
        holding[Condition.RESTARTING] = (verdict.reason, verdict.message)
    if verdict.phase is Phase.RUNNING and attempt and attempt.at_work:
        holding[Condition.PODS_READY] = (verdict.reason, "every pod is ready")
    if hold and hold.queued:
        holding[Condition.QUEUED] = word
    if (hold and hold.stalled) or verdict.blocked:
        del holding[Condition.RECONCILING]
        holding[Condition.STALLED] = word
    return holding


def _condition(
    kind: str, known: Mapping[str, Any], generation: int, word: tuple[str, str] | None, phase: str, now: datetime
) -> Status:
    status = "True" if word else "False"
    same = known.get("status") == status
    reason, message = word or (phase, "")
    return {
        "type": kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": known["lastTransitionTime"] if same else write_time(now),
        "reason": reason,
        "message": shorten(message, MAX_MESSAGE),
    }
