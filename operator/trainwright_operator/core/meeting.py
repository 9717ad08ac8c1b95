"""Whether the pods of an attempt have met: ready pods that cannot find each other look like any that load.

Node 0 tells when all have met, and whom it waits for when they have not. Where nothing of the pods gets through, a
closed network as much as broken DNS, it is told that nothing was said, and where they should meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api.names import Condition, Reason
from trainwright_operator.core.observe import Attempt
from trainwright_operator.core.times import read_time
from trainwright_operator.core.waiting import Hold

NO_WORD = timedelta(seconds=60)
"""Pods that are ready and say nothing for so long: on a node that is new, importing torch takes a part of it."""


def unmet(status: Mapping[str, Any], attempt: Attempt, now: datetime) -> tuple[Hold | None, timedelta | None]:
    """What to tell of pods that run and have not met, and when to look again at those that have said nothing yet."""
    where = attempt.jobs[0].meets_at if attempt.jobs else None
    if where is None or not attempt.at_work or any(pod.end for pod in attempt.pods) or _met(status, attempt):
        return None, None
    if waits := _gang(status, attempt).get("waits"):
        return Hold(Reason.PODS_NOT_MET, f"the pods run and have not met: {waits}"), None
    left = _ready_since(status, now) + NO_WORD - now
    if left > timedelta(0):
        return None, left
    service = where.partition(".")[2].partition(":")[0]
    told = (
        f"the pods run, and none has said that they have met: they start still, wait for node 0 at {where}, or do not "
        f"reach the operator; their logs say which; check that a NetworkPolicy lets them reach one another and the "
        f"operator, the Service {service} and the cluster's DNS"
    )
    return Hold(Reason.PODS_NOT_MET, told), None


def _met(status: Mapping[str, Any], attempt: Attempt) -> bool:
    """Who tells of training has met."""
    trains = (status.get("progress") or {}).get("attempt") == attempt.number
    return trains or bool(_gang(status, attempt).get("met"))


def _gang(status: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any]:
    gang: Mapping[str, Any] = status.get("gang") or {}
    return gang if gang.get("attempt") == attempt.number else {}


def _ready_since(status: Mapping[str, Any], now: datetime) -> datetime:
    for one in status.get("conditions") or ():
        if one["type"] == Condition.PODS_READY and one["status"] == "True":
            return read_time(one["lastTransitionTime"]) or now
    return now
