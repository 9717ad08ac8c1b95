"""Job and Pod objects reduced to what the policy asks: which attempts exist, what each pod does, why one waits.

Nothing here judges. An attempt is seen through the Jobs that the TrainingJob controls and the pods that those control:
neither children of a former TrainingJob with the same name nor a stray pod with copied labels are taken for ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from trainwright.contract import Termination
from trainwright_operator.api import names
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.leaving import Leaving
from trainwright_operator.core.times import read_time

Object = Mapping[str, Any]

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
OVERDUE = timedelta(seconds=30)
"""How long after the end of its grace a terminating pod is waited for; then its node is taken for lost."""
_STARTING = frozenset({"ContainerCreating", "PodInitializing", ""})


class JobState(Enum):
    ACTIVE = "active"
    ENDING = "ending"  # decided, while the last pods terminate
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True)
class End:
    """How the trainer container ended; ``exit_code`` is None when the pod ended before its container ran."""

    exit_code: int | None
    time: datetime | None
    reason: str = ""
    message: str = ""
    word: Termination | None = None


@dataclass(frozen=True)
class Wait:
    """Why a pod does not run yet, in the scheduler's or the kubelet's words."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Pod:
    name: str
    attempt: int
    slice: int = 0
    index: int = 0
    node: str | None = None
    ready: bool = False
    created: datetime | None = None
    wait: Wait | None = None
    end: End | None = None
    disruption: Wait | None = None
    deletion_requested: datetime | None = None
    deletion_due: datetime | None = None
    scheduled: datetime | None = None
    gang: int = 1
    """How many pods train together."""
    excess: str = ""
    """What it used more of than its own limits let it, for which the kubelet evicted it."""
    leaving: Leaving | None = None
    """What its node says of its end, where that was asked."""
    kept_by: tuple[str, ...] = ()
    """Containers that go on after the trainer has ended: the pod, and with it the Job, does not end by itself."""

    def alive(self, now: datetime) -> bool:
        """It may still write: neither ended, nor so long past its grace that its node must be lost."""
        return self.end is None and not (self.deletion_due and now >= self.deletion_due + OVERDUE)


@dataclass(frozen=True)
class Job:
    name: str
    attempt: int
    slice: int = 0
    completions: int = 1
    state: JobState = JobState.ACTIVE
    created: datetime | None = None
    started: datetime | None = None
    """When the Job controller took it up: by then it has created the pods, as far as it may."""
    ended: datetime | None = None
    decided: datetime | None = None
    """When its controller began to take its pods down, because it failed."""
    failure: str = ""
    """Why it failed, in the Job controller's word."""
    deleting: bool = False
    suspended: bool = False
    """Its pods were taken away by whoever sets the Job's own ``suspend`` or ``parallelism``: a person, or a queue."""
    wanted: int | None = None
    """The pods that its ``parallelism`` lets it have at once."""
    slices: int = 1
    """How many Jobs the attempt has when it is whole."""
    digest: str | None = None
    """The hash of what was planned."""
    meets_at: str | None = None
    """Name and port of node 0, where the pods tell when they have met."""
    template: Object = field(default_factory=dict, compare=False, repr=False)
    """Metadata and spec of its pods, as they were created."""
    refused: str | None = None
    """Why the Job controller may create no pods: a quota, or an admission webhook."""
    resolved: str | None = None
    """What its pods are to train, as JSON, where it rides in their template."""
    queued: bool = False
    """Its pods were admitted by a queue, whose quota they use."""

    @property
    def finished(self) -> bool:
        return self.state in (JobState.COMPLETE, JobState.FAILED)


@dataclass(frozen=True)
class Attempt:
    """The Jobs (one a slice) and pods of one attempt, in the order of slice and index."""

    number: int
    jobs: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()

    @property
    def desired(self) -> int:
        """The pods of all slices, whether each has its Job yet or not; pods that lost their Job know it as well."""
        if self.jobs:
            return self.jobs[0].completions * max(self.jobs[0].slices, len(self.jobs))
        return max((pod.gang for pod in self.pods), default=0)

    def pod_of(self, rank: int) -> Pod | None:
        """The pod of a rank, if all pods are there."""
        template = self.jobs[0].template if self.jobs else {}
        containers = (template.get("spec") or {}).get("containers") or ()
        env = next((one.get("env") or () for one in containers if one.get("name") == names.CONTAINER), ())
        text = next((str(one.get("value")) for one in env if one.get("name") == "PET_NPROC_PER_NODE"), "")
        at = rank // int(text) if text.isdigit() and int(text) else -1
        return self.pods[at] if not self.missing and 0 <= at < len(self.pods) else None

    @property
    def missing(self) -> int:
        """Pods that are not there, or not there any more."""
        return max(0, self.desired - len(self.pods))

    @property
    def whole(self) -> bool:
        """Every slice has its Job."""
        return bool(self.jobs) and len(self.jobs) >= self.jobs[0].slices

    @property
    def suspended(self) -> Job | None:
        """A Job that somebody holds back, who lets it go on as well."""
        return next((job for job in self.jobs if job.suspended), None)

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that do not end by themselves, as far as is known."""
        return [job for job in self.jobs if job.state is JobState.ACTIVE and not job.deleting]

    @property
    def ending(self) -> bool:
        """Every Job is decided or going."""
        return bool(self.jobs) and not self.unfinished

    @property
    def ended(self) -> bool:
        """Every pod is there, and its trainer has ended."""
        return self.whole and not self.missing and all(pod.end for pod in self.pods)

    @property
    def at_work(self) -> bool:
        """Every pod is there, and each one is ready or has already ended."""
        return self.whole and len(self.pods) >= self.desired and all(pod.ready or pod.end for pod in self.pods)


@dataclass(frozen=True)
class Probe:
    """Pods that wait for more room beside an elastic job."""

    placed: int = 0
    since: datetime | None = None
    """When the last of those that have found room did."""
    deleting: bool = False


@dataclass(frozen=True)
class Observed:
    attempts: tuple[Attempt, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    """Jobs that bear our names and that another owner holds: name to owner (``TrainingJob/other``)."""
    services: frozenset[str] | None = None
    """The Services of the job by name; None where none are looked at."""
    probe: Probe | None = None

    def attempt(self, number: int) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.number == number), None)

    @property
    def admitted(self) -> bool:
        """Pods that a queue admitted may be at work."""
        return any(job.queued and not job.finished for attempt in self.attempts for job in attempt.jobs)

    @property
    def newest(self) -> int:
        return self.attempts[-1].number if self.attempts else 0


def observe(
    job: TrainingJob,
    jobs: Iterable[Object],
    pods: Iterable[Object],
    events: Iterable[Object] = (),
    nodes: Mapping[str, Leaving] | None = None,
) -> Observed:
    """What the cluster holds of ``job``.

    ``events`` (core/v1) may add why pods are refused or stuck, ``nodes`` why pods on these nodes end.
    """
    warnings = {
        _involved(event): event.get("message") or "" for event in sorted(events, key=_last) if _tells_why(event)
    }
    jobs, pods = list(jobs), list(pods)
    foreign: dict[str, str] = {}
    by_attempt: dict[int, tuple[list[Job], list[Pod]]] = {}
    uids: dict[str, str] = {}
    for item in jobs:
        owner = _controller(item)
        if owner.get("uid") != job.uid:
            foreign[item["metadata"]["name"]] = f"{owner.get('kind', 'nobody')}/{owner.get('name', '')}".rstrip("/")
        elif (attempt := _number(item, names.LABEL_ATTEMPT)) is not None:
            by_attempt.setdefault(attempt, ([], []))[0].append(_job(item, attempt, warnings))
            uids[item["metadata"]["name"]] = item["metadata"].get("uid", "")
    for item in pods:
        look = _look(item)
        if look.attempt is None or look.job_uid != job.uid or not look.controlled(uids):
            continue
        warned = ("Pod", look.pod.name) in warnings
        pod = _pod(item, look.attempt, warnings) if warned else look.pod
        if nodes and (said := nodes.get(pod.node or "")):
            pod = replace(pod, leaving=said)
        by_attempt.setdefault(look.attempt, ([], []))[1].append(pod)
    attempts = tuple(_attempt(number, *parts) for number, parts in sorted(by_attempt.items()))
    return Observed(attempts, foreign, probe=_probe(job, jobs, pods))


def _probe(job: TrainingJob, jobs: list[Object], pods: list[Object]) -> Probe | None:
    own = [one for one in jobs if _label(one, names.LABEL_PROBE) and _controller(one).get("uid") == job.uid]
    if not own:
        return None
    of_probe = [_pod(one, 0, {}) for one in pods if _controller(one).get("uid") == own[0]["metadata"].get("uid")]
    placed = [pod for pod in of_probe if pod.node and not pod.end and not pod.deletion_due]
    times = [time for pod in placed if (time := pod.scheduled or pod.created)]
    return Probe(len(placed), max(times, default=None), "deletionTimestamp" in own[0]["metadata"])


def maker_of(pod: Object) -> str | None:
    """The Job that made the pod, by name: of the attempt and slice in its labels. None of a pod that no such Job made.

    A copy bears a pod's labels, and by them the Job controller may adopt it, but not a name that a Job gives. A pod
    whose Job was deleted without it has no controller any more.
    """
    job = "-".join(str(_label(pod, name)) for name in (names.LABEL_JOB, names.LABEL_SLICE, names.LABEL_ATTEMPT))
    meta, owner, given = pod["metadata"], _controller(pod), f"{job}-{_index(pod)}"
    named = meta["name"] == given or meta["name"].startswith(f"{given}-")
    made = owner.get("kind") == "Job" and owner.get("name") == job if owner else meta.get("generateName") == f"{given}-"
    return job if named and made else None


@dataclass(frozen=True)
class _Look:
    """What is ever asked of one version of a pod: of a gang of thousands, few have changed since the last look."""

    attempt: int | None
    job_uid: str | None
    maker: str | None
    controller: str | None
    pod: Pod

    def controlled(self, uids: Mapping[str, str]) -> bool:
        """By a Job of ours as long as that is there; pods may outlive it, a stray one does not take its place."""
        return self.maker is not None and uids.get(self.maker) in (None, self.controller)


_LOOKS: dict[tuple[str, str], _Look] = {}
_MOST_LOOKS = 50_000
"""Each is a few hundred bytes; the older half goes when there are more."""


def _look(item: Object) -> _Look:
    """Kept by uid and resourceVersion, which name one version of an object for ever."""
    meta = item["metadata"]
    uid, version = meta.get("uid"), meta.get("resourceVersion")
    if uid and version and (known := _LOOKS.get((uid, version))):
        return known
    attempt = _number(item, names.LABEL_ATTEMPT)
    controller = _controller(item).get("uid")
    look = _Look(attempt, _label(item, names.LABEL_JOB_UID), maker_of(item), controller, _pod(item, attempt or 0, {}))
    if uid and version:
        if len(_LOOKS) >= _MOST_LOOKS:
            for old in list(_LOOKS)[: _MOST_LOOKS // 2]:
                del _LOOKS[old]
        _LOOKS[uid, version] = look
    return look


def _attempt(number: int, jobs: list[Job], pods: list[Pod]) -> Attempt:
    in_order = sorted(pods, key=lambda pod: (pod.slice, pod.index, pod.name))
    return Attempt(number, tuple(sorted(jobs, key=lambda job: job.slice)), tuple(in_order))


def _job(item: Object, attempt: int, warnings: Mapping[tuple[str, str], str]) -> Job:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    conditions = {
        condition["type"]: condition
        for condition in status.get("conditions") or ()
        if condition.get("status") == "True"
    }
    final = conditions.get("Failed") or conditions.get("Complete") or {}
    failing = conditions.get("FailureTarget") or conditions.get("Failed") or {}
    template, completions = spec.get("template") or {}, spec.get("completions") or 1
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    wanted = min(spec.get("parallelism", completions), completions)
    active = _job_state(conditions) is JobState.ACTIVE
    return Job(
        name=metadata["name"],
        attempt=attempt,
        slice=_number(item, names.LABEL_SLICE) or 0,
        completions=completions,
        state=_job_state(conditions),
        created=read_time(metadata.get("creationTimestamp")),
        started=read_time(status.get("startTime")),
        ended=read_time(final.get("lastTransitionTime")),
        decided=read_time(failing.get("lastTransitionTime")),
        failure=failing.get("reason") or "",
        deleting="deletionTimestamp" in metadata,
        suspended=active and ("Suspended" in conditions or wanted < completions),
        wanted=wanted,
        slices=_number(item, names.LABEL_SLICES) or 1,
        digest=(metadata.get("annotations") or {}).get(names.ANNOTATION_HASH),
        meets_at=(metadata.get("annotations") or {}).get(names.ANNOTATION_MEETS_AT),
        template=template,
        refused=warnings.get(("Job", metadata["name"])),
        resolved=annotations.get(names.ANNOTATION_RESOLVED_JOB),
        queued=names.ANNOTATION_WORKLOAD in annotations,
    )


def _job_state(conditions: Mapping[str, Object]) -> JobState:
    if "Failed" in conditions:
        return JobState.FAILED
    if "Complete" in conditions:
        return JobState.COMPLETE
    return JobState.ENDING if conditions.keys() & {"FailureTarget", "SuccessCriteriaMet"} else JobState.ACTIVE


def config_map_of(pod_spec: Object) -> str | None:
    """The ConfigMap that the resolved job rides in, when it is too large for an annotation."""
    volumes = pod_spec.get("volumes") or ()
    own: Object = next((volume for volume in volumes if volume["name"] == names.VOLUME_JOB), {})
    name = own.get("projected", {}).get("sources", [{}])[0].get("configMap", {}).get("name")
    return str(name) if name else None


def _pod(item: Object, attempt: int, warnings: Mapping[tuple[str, str], str]) -> Pod:
    metadata, status = item["metadata"], item.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    due = read_time(metadata.get("deletionTimestamp"))
    grace = timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return Pod(
        name=metadata["name"],
        attempt=attempt,
        slice=_number(item, names.LABEL_SLICE) or 0,
        index=_index(item),
        node=(item.get("spec") or {}).get("nodeName"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        created=read_time(metadata.get("creationTimestamp")),
        wait=_wait(status, conditions, warnings.get(("Pod", metadata["name"]), "")),
        end=_end(status, native_sidecars(item.get("spec") or {})),
        disruption=_disruption(status, conditions),
        deletion_requested=due - grace if due else None,
        deletion_due=due,
        scheduled=read_time(conditions.get("PodScheduled", {}).get("lastTransitionTime")),
        gang=_gang(item),
        excess=str(status["message"]) if _over_own_limit(status) else "",
        kept_by=_kept_by(status),
    )


def _kept_by(status: Object) -> tuple[str, ...]:
    states = {one["name"]: one.get("state") or {} for one in status.get("containerStatuses") or ()}
    if status.get("phase") in ("Failed", "Succeeded") or "terminated" not in states.get(names.CONTAINER, {}):
        return ()
    return tuple(sorted(name for name, state in states.items() if "terminated" not in state))


def _gang(item: Object) -> int:
    containers = (item.get("spec") or {}).get("containers") or ()
    env = next((one.get("env") or () for one in containers if one.get("name") == names.CONTAINER), ())
    pods = next((str(one.get("value")) for one in env if one.get("name") == "PET_NNODES"), "")
    return int(pods) if pods.isdigit() else 1


def _wait(status: Object, conditions: Mapping[str, Object], event: str) -> Wait | None:
    if status.get("phase", "Pending") != "Pending":
        return None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return Wait(scheduled.get("reason") or "Unschedulable", scheduled.get("message") or "")
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason", "") not in _STARTING:
            return Wait(waiting["reason"], waiting.get("message") or event)
    return Wait("ContainerCreating", event)


def native_sidecars(pod_spec: Object) -> frozenset[str]:
    """Those that the kubelet starts before the trainer and ends after it: how they end tells nothing."""
    before = pod_spec.get("initContainers") or ()
    return frozenset(one["name"] for one in before if one.get("restartPolicy") == "Always")


def _end(status: Object, native: frozenset[str]) -> End | None:
    """A container that has terminated is the end of its pod (restartPolicy Never), even before the phase says so."""
    containers = status.get("containerStatuses") or ()
    own = next((one for one in containers if one.get("name") == names.CONTAINER), None)
    terminated = ((own or {}).get("state") or {}).get("terminated")
    if terminated:
        return _end_of(terminated, status)
    if status.get("phase") in ("Failed", "Succeeded"):
        return _end_of_init(status, native) or End(None, None, status.get("reason") or "", status.get("message") or "")
    return None


def _end_of(terminated: Object, status: Object) -> End:
    """Of a container with a main process of ours: its exit code and its termination message count."""
    message = terminated.get("message") or ""
    time = read_time(terminated.get("finishedAt"))
    reason = terminated.get("reason") or status.get("reason") or ""
    return End(terminated.get("exitCode"), time, reason, message, Termination.from_json(message))


def _end_of_init(status: Object, native: frozenset[str]) -> End | None:
    """Of a pod whose trainer never ran because what runs before it failed."""
    for container in status.get("initContainerStatuses") or ():
        terminated = (container.get("state") or {}).get("terminated") or {}
        if terminated.get("exitCode") and container.get("name") not in native:
            if container.get("name") == names.REQUIREMENTS:
                return _end_of(terminated, status)
            lines = (terminated.get("message") or "").split("\n")
            said = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
            message = f"init container {container.get('name')} ended with exit code {terminated['exitCode']}{said}"
            return End(None, read_time(terminated.get("finishedAt")), terminated.get("reason") or "", message)
    return None


def _disruption(status: Object, conditions: Mapping[str, Object]) -> Wait | None:
    """Why the cluster took the pod away; None when the pod brought it on itself by going over its own limits."""
    target = conditions.get("DisruptionTarget", {})
    if target.get("status") != "True" or _over_own_limit(status):
        return None
    return Wait(target.get("reason") or "DisruptionTarget", target.get("message") or "")


def _over_own_limit(status: Object) -> bool:
    """The kubelet evicts, and marks as disrupted, also a pod that used more scratch space than it asked for."""
    message = status.get("message") or ""
    return status.get("reason") == "Evicted" and ("exceeds the" in message or "exceeded its" in message)


def _index(item: Object) -> int:
    annotations = item["metadata"].get("annotations") or {}
    text = annotations.get(COMPLETION_INDEX) or _label(item, COMPLETION_INDEX) or "0"
    return int(text) if text.isascii() and text.isdigit() else 0


def _label(item: Object, name: str) -> str | None:
    value = (item["metadata"].get("labels") or {}).get(name)
    return None if value is None else str(value)


def _number(item: Object, label: str) -> int | None:
    text = _label(item, label) or ""
    return int(text) if text.isdigit() else None


def _controller(item: Object) -> Object:
    owners = item["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def _tells_why(event: Object) -> bool:
    """A warning, but of a Job's only the one that its pods may not be created, for others tell of the pods' end; and
    not the scheduler's, for the pod itself bears its word as long as it is true."""
    reason, of_job = event.get("reason"), _involved(event)[0] == "Job"
    return event.get("type") == "Warning" and reason != "FailedScheduling" and (not of_job or reason == "FailedCreate")


def _last(event: Object) -> str:
    """When it happened last; both fields sort by time."""
    return (
        event.get("lastTimestamp")
        or (event.get("series") or {}).get("lastObservedTime")
        or event.get("eventTime")
        or ""
    )


def _involved(event: Object) -> tuple[str, str]:
    involved = event.get("involvedObject") or {}
    return involved.get("kind", ""), involved.get("name", "")
