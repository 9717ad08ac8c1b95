"""Room for more: while an elastic job trains on fewer nodes than it may, probe pods wait for room beside it.

They ask for what a pod of the job asks for, and do nothing. That the scheduler places them is its own word that there
is room. When they have kept it for a while, the attempt stops after a checkpoint, the probe goes, and the next attempt
has the larger size. The first probe comes when the attempt has lasted twice ``elasticTimeoutSeconds``, so a job grows
at most once in that time.

A job in a queue has none, because its size is Kueue's to say; nor has one whose devices come by claims.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core import elastic
from trainwright_operator.core.children import attempt_jobs, child_metadata
from trainwright_operator.core.history import History, Record
from trainwright_operator.core.observe import Observed
from trainwright_operator.core.placement.vendor import Placement

Object = dict[str, Any]

_SCHEDULED_BY = ("nodeSelector", "tolerations", "schedulerName", "runtimeClassName", "securityContext")
_OF_CONTAINER = ("image", "imagePullPolicy", "resources", "securityContext")


def probe_name(job: TrainingJob) -> str:
    return f"{job.name}-probe"


def due(job: TrainingJob, history: History, now: datetime) -> timedelta | None:
    """In how long the attempt at work may be joined by a probe, 0 or less if it may now; None if it never is."""
    record = history.open
    grows = elastic.asked(job) and record and record.nodes and record.nodes < elastic.sizes(job)[0]
    if not (grows and record and history.running) or record.cause:
        return None
    return record.start + elastic.settled(job) - now


def probe(job: TrainingJob, place: Placement, record: Record) -> Object:
    """A Job of as many pods as are missing, each with the resources of one of the job's."""
    missing = elastic.sizes(job)[0] - (record.nodes or 0)
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_PROBE: job.name}
    full = attempt_jobs(job, place, record.number)[0]["spec"]["template"]["spec"]
    container = next(one for one in full["containers"] if one["name"] == names.CONTAINER)
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        **{name: full[name] for name in _SCHEDULED_BY if name in full},
        "containers": [
            {
                "name": "probe",
                "command": ["sleep", "infinity"],
                **{name: container[name] for name in _OF_CONTAINER if name in container},
            }
        ],
    }
    if nodes := (full.get("affinity") or {}).get("nodeAffinity"):
        spec["affinity"] = {"nodeAffinity": nodes}
    metadata = {**child_metadata(job, probe_name(job)), "labels": labels}
    stated = job.spec.pod_template
    own = {"labels": {**stated.labels, **labels}, "annotations": {**(place.annotations or {}), **stated.annotations}}
    template = {"metadata": {name: found for name, found in own.items() if found}, "spec": spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"completions": missing, "parallelism": missing, "backoffLimit": 0, "template": template},
    }


def growth(job: TrainingJob, history: History, observed: Observed, now: datetime) -> int | None:
    """The size that the job can grow to, because the probe has kept room for it; None if there is none yet."""
    seen, record, left = observed.probe, history.open, due(job, history, now)
    if seen is None or seen.deleting or record is None or not record.nodes or left is None or left > timedelta(0):
        return None
    if seen.since is None or now < seen.since + _while(job):
        return None
    size = elastic.fitting(job, record.nodes + seen.placed)
    return size if size > record.nodes else None


def look_again(job: TrainingJob, history: History, observed: Observed, now: datetime) -> timedelta | None:
    """When a probe is due, or has kept its room long enough."""
    left, seen = due(job, history, now), observed.probe
    if left is None:
        return None
    if left > timedelta(0):
        return left
    waits = seen.since + _while(job) - now if seen and seen.since else None
    return waits if waits and waits > timedelta(0) else None


def message(record: Record, size: int) -> tuple[str, str]:
    """Reason and message of an attempt that stops to grow."""
    return Reason.GROWN, f"there is room for {size} nodes; the attempt has {record.nodes}"


def _while(job: TrainingJob) -> timedelta:
    """How long room must have been kept: nodes that come and go are not worth a restart."""
    return elastic.timeout(job) / 10
