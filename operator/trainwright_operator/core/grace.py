"""Whether a pod that is asked to stop has time for its checkpoint: its grace period beside the measured time of a save.

Nodes that a cloud takes back give a pod less than it asks for. They are known by their taint or label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainwright.contract import MAX_MESSAGE, shorten
from trainwright_operator.api.names import Condition
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.api.status import MAX_WHY

RESERVE_SECONDS = 5
"""The end of the grace period, which the launcher keeps for itself."""


@dataclass(frozen=True)
class Notice:
    """What the nodes of a cloud give a pod when they are taken back; ``value`` is that of the label, if it matters."""

    key: str
    seconds: int
    value: str | None = None


NOTICES = (
    Notice("cloud.google.com/gke-spot", 15),
    Notice("cloud.google.com/gke-preemptible", 15),
    Notice("kubernetes.azure.com/scalesetpriority", 30, "spot"),
    Notice("eks.amazonaws.com/capacityType", 120, "SPOT"),
    Notice("karpenter.sh/capacity-type", 120, "spot"),
)
"""By taint (tolerated) or label (selected); GKE's can be raised to 120 s in the node pool's configuration."""


def needed(goodput: Mapping[str, Any]) -> float | None:
    """Seconds from the request to stop to the end: the step at work and the next one, the longest save, the reserve.

    None before the first save.
    """
    save, clock = goodput.get("longestSaveSeconds"), goodput.get("clock") or {}
    if not save:
        return None
    seconds, steps = clock.get("seconds") or {}, clock.get("step", 0) - clock.get("first", 0)
    work = sum(seconds.get(cause, 0.0) for cause in ("stepping", "data", "redone"))
    return float(save + 2 * work / max(1, steps) + RESERVE_SECONDS)


def warning(job: TrainingJob, pool: AcceleratorPool | None, goodput: Mapping[str, Any]) -> str:
    """What to change so that a stop loses no steps; empty while there is time enough, as far as is known."""
    seconds, grace = needed(goodput), job.spec.termination_grace_period_seconds
    if seconds is None:
        return ""
    whole, notice = math.ceil(seconds), _notice(job, pool)
    save = f"a save takes {goodput['longestSaveSeconds']:.0f} s, so a pod needs {whole} s to stop without losing steps"
    if notice and notice.seconds < whole:
        most = f"nodes with {notice.key} give at most {notice.seconds} s when they are taken back"
        return f"{save}, but {most}: save more often, or use other nodes"
    if grace < whole:
        return f"{save}, but terminationGracePeriodSeconds is {grace}: give it at least {whole}"
    return ""


def with_warning(status: Mapping[str, Any], text: str) -> dict[str, Any]:
    """``status`` with the warning in its Running condition and the column Why, if the job is at work."""
    if not text or status.get("state") != "Running":
        return dict(status)
    conditions = [
        {**one, "message": shorten(f"{one['message']}; {text}", MAX_MESSAGE)}
        if one["type"] == Condition.RUNNING
        else one
        for one in status["conditions"]
    ]
    return {**status, "conditions": conditions, "display": {"why": shorten(text, MAX_WHY), **status["display"]}}


def _worded(condition: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**condition, "message": shorten(f"{condition['message']}; {text}", MAX_MESSAGE)}


def _notice(job: TrainingJob, pool: AcceleratorPool | None) -> Notice | None:
    template = job.spec.pod_template
    tolerations = [*(pool.tolerations if pool else ()), *template.tolerations]
    labels = {**(pool.node_selector if pool else {}), **template.node_selector}
    found = [one for one in NOTICES if _tolerated(one, tolerations) or labels.get(one.key) in (one.value or "true",)]
    return min(found, key=lambda one: one.seconds, default=None)


def _tolerated(notice: Notice, tolerations: Iterable[Mapping[str, Any]]) -> bool:
    return any(one.get("key") == notice.key for one in tolerations)
