"""Pods that start together or not at all.

Where the API server serves PodGroup, the scheduler sees to it. Elsewhere, a gang of which only a part finds room holds
that room for nothing, and two such gangs can hold each other for ever: the attempt is then released after a while, and
tried again later. How long is drawn from the job's own identity, so that two gangs do not give way at the same moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.core.observe import Attempt, Pod

POD_GROUP_VERSIONS = ("scheduling.k8s.io/v1beta1", "scheduling.k8s.io/v1alpha3")
"""The versions whose PodGroup has the shape that is written here, the newest first."""
POD_GROUP = "PodGroup"


@dataclass(frozen=True)
class Gangs:
    """How this cluster starts gangs: the version of PodGroup that it serves, if any, and when a part is given up."""

    pod_group: str | None = None
    timeout: timedelta = timedelta(minutes=5)


ONE_BY_ONE = Gangs()
"""A cluster that starts each pod by itself, as most do."""


def pod_group(version: str, metadata: dict[str, Any], pods: int, priority_class: str | None) -> dict[str, Any]:
    """The group of an attempt; it is disrupted as a whole, because an attempt that lost a pod is lost."""
    priority = {"priorityClassName": priority_class} if priority_class else {}
    return {
        "apiVersion": version,
        "kind": POD_GROUP,
        "metadata": metadata,
        "spec": {"schedulingPolicy": {"gang": {"minCount": pods}}, "disruptionMode": {"all": {}}, **priority},
    }


def patience_left(attempt: Attempt, gangs: Gangs, uid: str, now: datetime) -> timedelta | None:
    """How much longer a partly placed attempt may wait for its other pods; None when it is not partly placed.

    It is counted anew from every pod that finds room: a gang that fills up, as a cluster grows, is not given up.
    """
    placed = [pod for pod in attempt.pods if pod.node]
    if not placed or not (len(attempt.pods) < attempt.desired or any(map(_has_no_room, attempt.pods))):
        return None
    times = [time for pod in placed if (time := pod.scheduled or pod.created)]
    since = max(times, default=None)
    return since + gangs.timeout * (1 + jitter(uid, attempt.number) / 2) - now if since else None


def words(pods: Iterable[Pod], desired: int) -> str:
    placed = sum(pod.node is not None for pod in pods)
    return f"only {placed} of {desired} pods found room; it is given back, and all are tried again later"


def _has_no_room(pod: Pod) -> bool:
    return pod.node is None and pod.end is None and pod.wait is not None and pod.wait.reason == "Unschedulable"


def jitter(uid: str, attempt: int) -> float:
    """From 0 to 1, the same for the same attempt: a plan that is made again is the same plan."""
    return int.from_bytes(hashlib.sha256(f"{uid}/{attempt}".encode()).digest()[:4]) / 2**32
