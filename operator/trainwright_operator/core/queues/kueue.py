"""A TrainingJob in a queue of Kueue: one Workload for the life of the job, over all its attempts and slices.

A TrainingJob with the label ``kueue.x-k8s.io/queue-name`` gets a Workload, and its pods are created when Kueue admits
that. Restarts keep the quota. A Workload that is evicted stops the attempt after a checkpoint; only when no pod is left
is its quota returned. ``spec.suspend`` remains the user's: a suspended job has no Workload.

:func:`hold` says what a job without an attempt waits for, :func:`withdrawal` why an attempt must stop, :func:`placed`
where an admitted one runs, and :func:`follow` what to write to the Workload. The protocol is Kueue's own for jobs that
it does not know: its job reconciler, as of v0.19.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from trainwright.contract import MAX_MESSAGE, shorten
from trainwright_operator.api import formats, names
from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core import elastic
from trainwright_operator.core.children import attempt_jobs, child_metadata
from trainwright_operator.core.cleanup import Delete
from trainwright_operator.core.observe import COMPLETION_INDEX, Attempt, Observed
from trainwright_operator.core.placement.vendor import Placement, PoolError
from trainwright_operator.core.policy import FINISHED, Phase, Verdict
from trainwright_operator.core.quantities import amount
from trainwright_operator.core.queues.workload import (
    FINALIZER,
    GROUP,
    KIND,
    VERSION,
    Flavor,
    On,
    Workload,
    owned,
    owner,
)
from trainwright_operator.core.queues.workload import LABEL_QUEUE as LABEL_QUEUE
from trainwright_operator.core.times import remaining, write_time
from trainwright_operator.core.waiting import Hold

Object = dict[str, Any]

LABEL_PRIORITY = f"{GROUP}/priority-class"
LABEL_MAX_SECONDS = f"{GROUP}/max-exec-time-seconds"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_POD_SET = f"{GROUP}/podset"
PREBUILT = f"{GROUP}/prebuilt-workload-name"
"""Label or annotation of a job whose Workload was there before it: MultiKueue makes both in a worker cluster."""
ANNOTATION_GATED_BY = f"{GROUP}/admission-gated-by"
PROVISIONING = f"provreq.{GROUP}/"
"""Annotations with this prefix are parameters of a ProvisioningRequest."""
GATE = f"{GROUP}/topology"
"""Removed from a pod by Kueue when it has chosen the pod's place in the topology."""
POD_SET = "main"

FIRST_ANSWER = timedelta(seconds=3)
"""How long Kueue may take before a job says that it waits: most are admitted, or refused with a reason, at once."""

LOOK_AGAIN = timedelta(seconds=60)
"""How often a job that waits because queues cannot be followed looks whether they can."""

UNSEEN = "PendingEvaluation"
FAILED_TO_START = "FailedToStart"
_NEEDS_A_PERSON = frozenset({"Inadmissible", "Misconfigured", "ExceedsMaxQuota", "NoMatchingFlavor"})
_CAN_NEVER_BE = (
    "> maximum capacity",
    "doesn't match node affinity",
    "untolerated taint",
    "unavailable in ClusterQueue",
)
_MAY_COME = ("unused quota", "allows to fit")
"""Of what Kueue says of each flavor, where its reason is only ``Pending``: by default, and before 0.19."""
_ASKS = ("resources", "restartPolicy", "image")
_SCHEDULED_BY = (
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "runtimeClassName",
    "schedulerName",
)


@dataclass(frozen=True)
class Queue:
    """What a job in a queue is planned with.

    Attributes:
        workload: The job's own, if it exists.
        flavors: Every ResourceFlavor of the cluster.
        priorities: The values of the WorkloadPriorityClasses, and of the PriorityClasses (key: ``pod/<name>``).
        trouble: Why this operator cannot follow queues at all; empty if it can.
        place: That of the waiting Workload in its ClusterQueue, counted from 1; None if it is not known.
    """

    workload: Workload | None = None
    flavors: Mapping[str, Flavor] = field(default_factory=dict)
    priorities: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""
    place: int | None = None


@dataclass(frozen=True)
class Change:
    """A merge patch of the job's Workload, or of its status."""

    patch: Object
    of_status: bool = True


@dataclass(frozen=True)
class Followed:
    """What to write to the Workload, in this order, whether to delete it, and when to look again."""

    changes: tuple[Change, ...] = ()
    delete: tuple[Delete, ...] = ()
    again: timedelta | None = None


def queue_of(job: TrainingJob) -> str:
    """The LocalQueue that the job asks for; empty if none."""
    return job.labels.get(LABEL_QUEUE, "")


def workload_name(job: TrainingJob) -> str:
    """Different for a job of the same name that was deleted: its Workload may outlive it for a while."""
    return f"trainingjob-{job.name}-{job.uid[:5]}"


def prebuilt(job: TrainingJob) -> str:
    """The name of the Workload that was made for the job by another; empty if the job makes its own."""
    return job.annotations.get(PREBUILT) or job.labels.get(PREBUILT, "")


def workload_of(job: TrainingJob, objects: Iterable[Mapping[str, Any]]) -> Workload | None:
    """The Workload of ``job`` among ``objects``: the one that it owns, or the prebuilt one that nobody owns yet."""
    objects = list(objects)
    return owned(objects, job.uid) or next(
        (Workload(one) for one in objects if one["metadata"]["name"] == prebuilt(job) and not owner(one)), None
    )


# The Workload


def workload(job: TrainingJob, place: Placement, queue: Queue) -> Object:
    """The Workload of ``job``. Nothing in it depends on an attempt."""
    metadata = child_metadata(job, workload_name(job))
    metadata["labels"] |= {LABEL_JOB_UID: job.uid}
    metadata["finalizers"] = [FINALIZER]
    copied = {
        name: value
        for name, value in job.annotations.items()
        if name.startswith(PROVISIONING) or name == ANNOTATION_GATED_BY
    }
    spec = _spec(job, place)
    metadata["annotations"] = {**copied, names.ANNOTATION_HASH: _digest(spec), **_origin(job)}
    return {"apiVersion": VERSION, "kind": KIND, "metadata": metadata, "spec": {**spec, **_priority(job, queue)}}


def missing(job: TrainingJob, place: Placement, queue: Queue) -> tuple[Object, ...]:
    """The Workload, if it is yet to be created."""
    unusable = queue.trouble or _wrong_label(job, queue)
    return () if queue.workload or prebuilt(job) or unusable else (workload(job, place, queue),)


def _spec(job: TrainingJob, place: Placement) -> Object:
    """What Kueue keeps unchanged while quota is reserved."""
    seconds = _seconds(job.labels.get(LABEL_MAX_SECONDS, ""))
    pods: Object = {"name": POD_SET, "count": place.pods, "template": {"spec": _pod_spec(job, place)}}
    if elastic.asked(job) and (least := elastic.sizes(job)[-1]) < place.pods:
        pods["minCount"] = least
    return {
        "queueName": queue_of(job),
        "podSets": [pods | _topology(job, place)],
        **({"maximumExecutionTimeSeconds": seconds} if seconds else {}),
    }


def admitted_pods(queue: Queue) -> int | None:
    """How many pods the quota is for; None if that is not known."""
    count = queue.workload.assignment.get("count") if queue.workload else None
    return int(count) if count else None


def _origin(job: TrainingJob) -> dict[str, str]:
    """By which the copy of the job in another cluster goes on where an earlier one was."""
    if not job.spec.managed_by:
        return {}
    return {names.ANNOTATION_ORIGIN: job.uid, names.ANNOTATION_ATTEMPTS: str(attempts_so_far(job.status))}


def attempts_so_far(status: Mapping[str, Any]) -> int:
    """The number of the newest attempt in a status; 0 if there was none."""
    return max((one["attempt"] for one in status.get("attempts") or ()), default=0)


def of_origin(job: TrainingJob, found: Workload | None) -> TrainingJob:
    """``job`` with what its prebuilt Workload says of the job that it is a copy of."""
    told = (found.stored["metadata"].get("annotations") or {}) if found and prebuilt(job) else {}
    number = told.get(names.ANNOTATION_ATTEMPTS, "")
    before = int(number) if number.isascii() and number.isdigit() else 0
    return replace(job, origin=told.get(names.ANNOTATION_ORIGIN, ""), attempts_elsewhere=before) if told else job


def _topology(job: TrainingJob, place: Placement) -> Object:
    """By the indexes of pods and slices Kueue places neighbours in rank near one another."""
    wanted = job.spec.accelerator.topology
    if not (wanted.required or wanted.preferred):
        return {}
    request: Object = {"required": wanted.required} if wanted.required else {"preferred": wanted.preferred}
    request["podIndexLabel"] = COMPLETION_INDEX
    if place.slices > 1:
        request |= {"subGroupIndexLabel": names.LABEL_SLICE, "subGroupCount": place.slices}
    return {"topologyRequest": request}


def _pod_spec(job: TrainingJob, place: Placement) -> Object:
    """The fields of a pod by which quota is counted and flavors are chosen."""
    full = attempt_jobs(job, place, 0)[0]["spec"]["template"]["spec"]
    found = {name: full[name] for name in _SCHEDULED_BY if name in full}
    if nodes := (full.get("affinity") or {}).get("nodeAffinity"):
        found["affinity"] = {"nodeAffinity": nodes}
    for kind in ("initContainers", "containers"):
        if kind in full:
            found[kind] = [_asks(container) for container in full[kind]]
    if place.quota_resource:
        found["containers"][0] = _counted(found["containers"][0], place.quota_resource, place.devices)
    return found


def _counted(container: Object, resource: str, devices: int) -> Object:
    """With the devices that the pod claims (Dynamic Resource Allocation), as a resource that only the queue knows."""
    resources = {name: value for name, value in (container.get("resources") or {}).items() if name != "claims"}
    more = {kind: {**resources.get(kind, {}), resource: str(devices)} for kind in ("requests", "limits")}
    return {**container, "resources": {**resources, **more}}


def _asks(container: Mapping[str, Any]) -> Object:
    return {"name": container["name"], **{name: container[name] for name in _ASKS if name in container}}


def _digest(spec: Object) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _priority(job: TrainingJob, queue: Queue) -> Object:
    if name := job.labels.get(LABEL_PRIORITY):
        value = queue.priorities.get(name)
        reference = {"group": GROUP, "kind": "WorkloadPriorityClass", "name": name}
        return {} if value is None else {"priorityClassRef": reference, "priority": value}
    name = job.spec.pod_template.priority_class_name or ""
    value = queue.priorities.get(f"pod/{name}")
    reference = {"group": "scheduling.k8s.io", "kind": "PriorityClass", "name": name}
    return {} if value is None else {"priorityClassRef": reference, "priority": value}


# A job without an attempt


def hold(job: TrainingJob, place: Placement, queue: Queue, now: datetime) -> Hold | None:
    """What the next attempt waits for; None when its pods may be created."""
    if queue.trouble:
        return Hold(Reason.QUEUE_UNUSABLE, queue.trouble, queued=True, stalled=True, again=LOOK_AGAIN)
    found = queue.workload
    if message := _wrong_label(job, queue):
        return Hold(Reason.QUEUE_UNUSABLE, message, queued=True, stalled=True)
    if found is None and prebuilt(job):
        return _waits(job, UNSEEN, f"its Workload {prebuilt(job)} is not here yet")
    if found is None:
        return replace(_waits(job, UNSEEN, "it is entered"), again=FIRST_ANSWER, unheard=True)
    if found.deleting:
        return _waits(job, Reason.WORKLOAD_REPLACED, f"Workload {found.name} is being deleted, a new one follows")
    if prebuilt(job):
        if differs := _differs(found.spec, _spec(job, place)):
            message = f"the AcceleratorPools of this cluster and of the manager cluster disagree: {differs}"
            return _waits(job, Reason.WORKLOAD_DIFFERS, message, stalled=True)
    elif found.digest != _digest(_spec(job, place)):
        return _waits(job, Reason.WORKLOAD_REPLACED, "the job was changed, and with it what it asks Kueue for")
    elif differs := _moved(job, found) or _differs(found.spec, _spec(job, place)):
        command = f"kubectl -n {job.namespace} delete workload {found.name}"
        message = f"its Workload was changed by hand: {differs}; `{command}` lets the operator make it anew"
        return _waits(job, Reason.WORKLOAD_DIFFERS, message, stalled=True)
    if found.finished:
        return _after_the_end(job, found)
    if not found.active:
        return _deactivated(job, found)
    if found.admitted:
        return _without_flavor(job, found, queue)
    return _not_admitted(job, found, queue.place, now)


def _wrong_label(job: TrainingJob, queue: Queue) -> str:
    """Which label asks for what cannot be, and the fix; empty where the Workload exists and does without it."""
    name, seconds, found = job.labels.get(LABEL_PRIORITY, ""), job.labels.get(LABEL_MAX_SECONDS), queue.workload
    if found and found.admitted:
        return ""
    if not re.fullmatch(formats.SUBDOMAIN.expression, queue_of(job)):
        return f"label {LABEL_QUEUE}={queue_of(job)} is no name of a LocalQueue; {formats.SUBDOMAIN.hint}"
    if seconds is not None and _seconds(seconds) is None:
        return f"label {LABEL_MAX_SECONDS}={seconds}: write a whole number of seconds from 1 on, or remove it"
    known = {"", *queue.priorities, (found.spec.get("priorityClassRef") or {}).get("name") if found else ""}
    if name not in known:
        return f"WorkloadPriorityClass {name} does not exist; create it, or change the label {LABEL_PRIORITY}"
    return ""


def _seconds(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 2**31 else None


def _waits(job: TrainingJob, reason: str, message: str, stalled: bool = False) -> Hold:
    return Hold(reason, f"queue {queue_of(job)}: {message}", queued=True, stalled=stalled)


def _after_the_end(job: TrainingJob, found: Workload) -> Hold:
    condition = found.condition(On.FINISHED)
    if condition.get("reason") == FAILED_TO_START:
        return _waits(job, FAILED_TO_START, condition.get("message") or "", stalled=True)
    if prebuilt(job):
        return _waits(job, Reason.WORKLOAD_REPLACED, "its Workload has ended; MultiKueue takes the job away")
    return _waits(job, Reason.WORKLOAD_REPLACED, "it has ended before and waits for quota again")


def _deactivated(job: TrainingJob, found: Workload) -> Hold:
    why = found.condition(On.EVICTED)
    cause = f" ({why['message'].rstrip('.')})" if why.get("message") else ""
    command = f'kubectl -n {job.namespace} patch workload {found.name} --type merge -p \'{{"spec":{{"active":true}}}}\''
    return _waits(job, "Deactivated", f"its Workload is deactivated{cause}; `{command}` lets it wait again", True)


def _without_flavor(job: TrainingJob, found: Workload, queue: Queue) -> Hold | None:
    missing = [name for name in found.flavors if name not in queue.flavors]
    return _waits(job, "FlavorNotFound", f"ResourceFlavor {missing[0]} does not exist", True) if missing else None


def _not_admitted(job: TrainingJob, found: Workload, place: int | None, now: datetime) -> Hold:
    if found.evicted and found.reserved:
        return _waits(job, _evicted(found)[0], f"{_evicted(found)[1]}; its quota is being returned")
    if found.reserved:
        checks = [f"{one['name']} is {one.get('state')}: {one.get('message') or '-'}" for one in found.checks]
        waits = "; ".join(checks) or found.condition(On.ADMITTED).get("message") or "it is being admitted"
        return _waits(job, "AdmissionChecks", f"quota in {found.cluster_queue} is reserved; {waits}")
    pending = found.condition(On.QUOTA_RESERVED)
    if not pending:
        left = remaining(found.created or now, FIRST_ANSWER, now)
        return replace(_unseen(job, found, place), again=left or None, unheard=bool(left))
    reason, message = pending.get("reason") or UNSEEN, (pending.get("message") or "it waits").rstrip(".")
    stalled = reason in _NEEDS_A_PERSON or _never(job, message)
    if fix := _fix(job, message):
        message = f"{message}; {fix}"
    return _waits(job, reason, _at(place) + message, stalled=stalled)


def _never(job: TrainingJob, message: str) -> bool:
    """Whether no flavor can ever take the job, whoever ends; an elastic job may be taken in another size."""
    hopeless = any(words in message for words in _CAN_NEVER_BE)
    return hopeless and not any(words in message for words in _MAY_COME) and not elastic.asked(job)


def _at(place: int | None) -> str:
    return "" if place is None else f"place {place} in the ClusterQueue; "


def _unseen(job: TrainingJob, found: Workload, place: int | None) -> Hold:
    """Kueue says nothing of a Workload that asks for the same as one before it which has no room."""
    if place is not None:
        return _waits(job, UNSEEN, f"{_at(place)}Kueue looks at it when those before it have started")
    message = (
        f"Kueue has not looked at Workload {found.name} yet: others are before it, or Kueue's controller is not at work"
    )
    return _waits(job, UNSEEN, message)


def _fix(job: TrainingJob, message: str) -> str:
    if "doesn't exist" in message and "LocalQueue" in message:
        listing = f"kubectl -n {job.namespace} get localqueues"
        return (
            f"create that LocalQueue in namespace {job.namespace}, or set the label {LABEL_QUEUE} to one of `{listing}`"
        )
    if "ClusterQueue" in message and ("doesn't exist" in message or "inactive" in message):
        return "`kubectl describe clusterqueue` says why; an administrator of the queues can fix it"
    if _never(job, message):
        return "this queue can never admit it: create a smaller job, choose another queue, or have its quota changed"
    return ""


# An attempt at work


def withdrawal(attempt: Attempt, queue: Queue) -> tuple[str, str] | None:
    """Reason and message if an attempt that was admitted must stop; None if it may go on, or was never queued.

    An operator that cannot read Workloads stops nothing: it does not know whether the quota is still there.
    """
    if queue.trouble or not any(one.queued for one in attempt.jobs):
        return None
    found = queue.workload
    if found is None:
        return Reason.WORKLOAD_DELETED, "its Workload was deleted, and with it its quota"
    if found.evicted:
        return _evicted(found)
    if found.deleting:
        return Reason.WORKLOAD_DELETED, f"Workload {found.name} is being deleted, and with it its quota"
    if not found.active:
        return "Deactivated", f"Workload {found.name} was deactivated"
    if found.finished:
        return Reason.WORKLOAD_DELETED, f"Workload {found.name} was declared finished, and its quota returned"
    return None if found.admitted else (Reason.WORKLOAD_DELETED, f"Workload {found.name} is not admitted any more")


def _evicted(found: Workload) -> tuple[str, str]:
    condition = found.condition(On.EVICTED)
    return condition.get("reason") or "Evicted", f"evicted by Kueue: {condition.get('message') or 'no reason given'}"


# An admitted job


def placed(job: TrainingJob, place: Placement, queue: Queue) -> Placement:
    """``place`` on the nodes whose quota was given.

    Raises:
        PoolError: What was given contradicts what the job or its pool asks for. Trying again would not help.
    """
    found = queue.workload
    assert found is not None, "only an admitted job is placed"
    in_topology = bool(found.assignment.get("topologyAssignment"))
    annotations = {names.ANNOTATION_WORKLOAD: found.name, **(_topology_annotation(job) if in_topology else {})}
    result = replace(
        place,
        labels={LABEL_POD_SET: POD_SET},
        annotations={**(place.annotations or {}), **annotations},
        gates=(GATE,) if in_topology else (),
    )
    for name in found.flavors:
        flavor = queue.flavors.get(name)
        if flavor is None:
            raise PoolError(f"ResourceFlavor {name} does not exist")
        result = _merged(result, f"ResourceFlavor {name}", {"nodeSelector": flavor.node_labels}, flavor.tolerations)
    for check in found.checks:
        for update in check.get("podSetUpdates") or ():
            result = _merged(result, f"admission check {check['name']}", update, update.get("tolerations") or ())
    return result


def _topology_annotation(job: TrainingJob) -> dict[str, str]:
    """By which Kueue knows the pods that wait for their place; also those that were given one without asking."""
    wanted = job.spec.accelerator.topology
    kind = "required" if wanted.required else "preferred" if wanted.preferred else "unconstrained"
    return {f"{GROUP}/podset-{kind}-topology": wanted.required or wanted.preferred or "true"}


def _merged(place: Placement, whose: str, update: Mapping[str, Any], tolerations: Any) -> Placement:
    new = tuple(one for one in tolerations if one not in place.tolerations)
    return replace(
        place,
        node_selector=_agreed(place.node_selector, update.get("nodeSelector"), f"{whose}: nodeSelector"),
        labels=_agreed(place.labels, update.get("labels"), f"{whose}: label"),
        annotations=_agreed(place.annotations, update.get("annotations"), f"{whose}: annotation"),
        tolerations=(*place.tolerations, *new),
    )


def _agreed(known: Mapping[str, str] | None, new: Mapping[str, str] | None, what: str) -> dict[str, str]:
    known, new = dict(known or {}), dict(new or {})
    for name in known.keys() & new.keys():
        if known[name] != new[name]:
            raise PoolError(f"{what} {name}={new[name]} contradicts {name}={known[name]} of the job or its pool")
    return {**known, **new}


# What is written to the Workload


def follow(
    job: TrainingJob, queue: Queue, verdict: Verdict, place: Placement | None, observed: Observed, now: datetime
) -> Followed:
    """What the Workload must be told after ``verdict``; ``place`` is where the job would start now, if it can."""
    found = queue.workload
    if found is None:
        return Followed()
    in_use = _uses_quota(observed, now)
    at_rest = verdict.history.open is None and verdict.start is None and not in_use
    if found.deleting:
        return released(found) if at_rest else Followed()
    if verdict.phase in FINISHED and at_rest:
        return _ended(job, found, verdict, now)
    if prebuilt(job):
        return _adopted(job, queue, verdict, at_rest, now)
    if (at_rest and job.spec.suspend) or (not queue_of(job) and not in_use):
        return withdrawn(found)
    if at_rest and found.finished:
        same = found.condition(On.FINISHED).get("reason") == FAILED_TO_START and _current(job, found, place)
        return Followed() if same else withdrawn(found)
    if at_rest and place and not _current(job, found, place):
        if found.reserved:
            return withdrawn(found)
        if _wrong_label(job, queue):
            return Followed()
        return Followed((_updated(job, found, place),), again=FIRST_ANSWER)  # Kueue may have nothing new to say of it
    if found.evicted and found.reserved and at_rest:
        return Followed((requeued(found, now),))
    return Followed(tuple(running(job, queue, verdict, now)))


def released(found: Workload) -> Followed:
    """A deleted Workload goes, because no pod uses its quota any more."""
    return Followed() if found.finalized else Followed((_without_finalizer(found),))


def of_deleted(queue: Queue, observed: Observed, now: datetime) -> tuple[Change, ...]:
    """What is written to the Workload of a job that is being deleted."""
    found = queue.workload
    return released(found).changes if found and found.deleting and not _uses_quota(observed, now) else ()


def failed_to_start(queue: Queue, message: str, now: datetime) -> tuple[Change, ...]:
    """Its quota is returned: what was given contradicts what the job asks for, now and at every other try."""
    found = queue.workload
    return (_with_condition(found, On.FINISHED, True, FAILED_TO_START, message, now),) if found else ()


def _current(job: TrainingJob, found: Workload, place: Placement | None) -> bool:
    return place is None or found.digest == _digest(_spec(job, place))


def _uses_quota(observed: Observed, now: datetime) -> bool:
    """Whether pods that a queue admitted may still run."""
    queued = [attempt for attempt in observed.attempts if any(one.queued for one in attempt.jobs)]
    return any(attempt.unfinished or any(pod.alive(now) for pod in attempt.pods) for attempt in queued)


def _adopted(job: TrainingJob, queue: Queue, verdict: Verdict, at_rest: bool, now: datetime) -> Followed:
    """A Workload that another made is neither changed nor deleted by us; its owner is the job, as Kueue wants it."""
    found = queue.workload
    assert found is not None
    changes = []
    if owner(found.stored) != job.uid:
        made = child_metadata(job, found.name)
        owners = [*(found.stored["metadata"].get("ownerReferences") or ()), *made["ownerReferences"]]
        changes.append(Change({"metadata": {"ownerReferences": owners, "labels": {LABEL_JOB_UID: job.uid}}}, False))
    if found.evicted and found.reserved and at_rest:
        return Followed((*changes, requeued(found, now)))
    return Followed((*changes, *running(job, queue, verdict, now)))


def _moved(job: TrainingJob, found: Workload) -> str:
    return "" if found.queue == queue_of(job) else f"it is in queue {found.queue}"


def _differs(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what a Workload and what this cluster would ask for differ; empty if the quota is that of the pods."""
    (ours,), theirs = wanted["podSets"], (given.get("podSets") or [{}])[0]
    if theirs.get("count") != ours["count"]:
        return f"the Workload has {theirs.get('count')} pods, and here the job has {ours['count']}"
    here, there = _total(ours), _total(theirs)
    for name, value in sorted(here.items()):
        if there.get(name) != value:
            return f"a pod of the Workload asks for {there.get(name, 0):g} of {name}, and here for {value:g}"
    return ""


def _total(pod_set: Mapping[str, Any]) -> dict[str, float]:
    """What the containers of a pod ask for, by resource."""
    found: dict[str, float] = {}
    for container in pod_set.get("template", {}).get("spec", {}).get("containers") or ():
        asked = container.get("resources") or {}
        for name, quantity in {**(asked.get("limits") or {}), **(asked.get("requests") or {})}.items():
            found[name] = found.get(name, 0.0) + amount(quantity)
    return found


def _ended(job: TrainingJob, found: Workload, verdict: Verdict, now: datetime) -> Followed:
    """After the status, which MultiKueue copies when the Workload has finished, and then deletes the job."""
    if job.status.get("state") not in FINISHED:
        return Followed(again=timedelta(0))
    changes = []
    if not found.finished:
        reason = "Succeeded" if verdict.phase is Phase.SUCCEEDED else "Failed"
        changes.append(_with_condition(found, On.FINISHED, True, reason, verdict.message, now))
    if not found.finalized:
        changes.append(_without_finalizer(found))
    return Followed(tuple(changes))


def withdrawn(found: Workload) -> Followed:
    return Followed(released(found).changes, (Delete(VERSION, KIND, found.name),))


def _updated(job: TrainingJob, found: Workload, place: Placement) -> Change:
    """A Workload that waits asks for something else, and keeps its place in the queue."""
    spec = _spec(job, place)
    annotations = {names.ANNOTATION_HASH: _digest(spec)}
    if "maximumExecutionTimeSeconds" in found.spec:
        spec.setdefault("maximumExecutionTimeSeconds", None)
    return Change({"metadata": {"annotations": annotations}, "spec": spec}, of_status=False)


def running(job: TrainingJob, queue: Queue, verdict: Verdict, now: datetime) -> Iterator[Change]:
    """What follows from how far the attempt is, and from a priority that was changed."""
    found = queue.workload
    assert found is not None
    wanted = _priority(job, queue)
    if queue_of(job) and wanted and any(found.spec.get(name) != value for name, value in wanted.items()):
        yield Change({"spec": wanted}, of_status=False)
    if not found.admitted:
        return
    ready, known = verdict.phase is Phase.RUNNING, found.condition(On.PODS_READY)
    if ready and known.get("status") != "True":
        reason = "Recovered" if known.get("reason") in ("WaitForRecovery", "Recovered") else "Started"
        yield _with_condition(found, On.PODS_READY, True, reason, "every pod is ready", now)
    elif not ready and known.get("status") == "True":
        yield _with_condition(found, On.PODS_READY, False, "WaitForRecovery", verdict.message, now)


def requeued(found: Workload, now: datetime) -> Change:
    """The quota is returned, because no pod is left that uses it."""
    reason, message = found.condition(On.EVICTED).get("reason") or "Evicted", found.condition(On.EVICTED)["message"]
    at_once = reason in ("Preempted", "NodeFailures")
    conditions = _conditions(found, On.REQUEUED, at_once, reason, message, now)
    conditions = _set(conditions, found, On.QUOTA_RESERVED, False, "Pending", message, now)
    conditions = _set(conditions, found, On.ADMITTED, False, "NoReservation", "The workload has no reservation", now)
    status: Object = {"conditions": conditions, "admission": None}
    if found.admitted_at:
        before = found.status.get("accumulatedPastExecutionTimeSeconds") or 0
        status["accumulatedPastExecutionTimeSeconds"] = before + int((now - found.admitted_at).total_seconds())
    return Change(status)


def _without_finalizer(found: Workload) -> Change:
    kept = [one for one in found.stored["metadata"].get("finalizers") or () if one != FINALIZER]
    return Change({"metadata": {"finalizers": kept}}, of_status=False)


def _with_condition(found: Workload, kind: str, holds: bool, reason: str, message: str, now: datetime) -> Change:
    return Change({"conditions": _conditions(found, kind, holds, reason, message, now)})


def _conditions(found: Workload, kind: str, holds: bool, reason: str, message: str, now: datetime) -> list[Object]:
    """All conditions: a merge patch replaces the list."""
    return _set([dict(one) for one in found.conditions], found, kind, holds, reason, message, now)


def _set(
    conditions: list[Object], found: Workload, kind: str, holds: bool, reason: str, message: str, now: datetime
) -> list[Object]:
    status = "True" if holds else "False"
    known = next((one for one in conditions if one["type"] == kind), {})
    same = known.get("status") == status
    condition = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": shorten(message, MAX_MESSAGE),
        "observedGeneration": found.stored["metadata"].get("generation") or 1,
        "lastTransitionTime": known["lastTransitionTime"] if same else write_time(now),
    }
    return [*(one for one in conditions if one["type"] != kind), condition]
