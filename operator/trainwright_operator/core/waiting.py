"""Why an attempt's pods do not run yet, in words: the scheduler's, the kubelet's or the quota's, and the mend."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from trainwright_operator.core.mends import mends, with_mends
from trainwright_operator.core.observe import Attempt, Job, JobState, Observed, Pod, Wait
from trainwright_operator.names import Reason

PATIENCE = timedelta(seconds=60)
"""How long a pod may fail to start before the job counts as stalled: what it needs may be applied a moment later."""
SILENCE = timedelta(seconds=3)
"""Pods that have not appeared so long after the Job controller took their Job up were refused to it."""
FIRST_WORD = timedelta(seconds=3)
"""What the scheduler says of newer pods is not told: the claim, or the node, often comes a moment after them."""

_PULL = "ImagePullBackOff"
_MENDS = {
    _PULL: "check the image (podTemplate.image, or the pool's) and podTemplate.imagePullSecrets",
    "InvalidImageName": "check the image (podTemplate.image, or the pool's)",
    "ErrImageNeverPull": "load the image on the node, or change podTemplate.imagePullPolicy",
    "CreateContainerConfigError": "create what is missing, or correct podTemplate",
    "CreateContainerError": "correct podTemplate or the image",
    "RunContainerError": "correct podTemplate or the image",
}
_QUEUED = frozenset({"Unschedulable", "SchedulingGated", Reason.PODS_REFUSED})
_MISSING = re.compile(r'" not found|non-existent|couldn\'t find key')
"""What pods wait for in vain until somebody makes it, whatever the reason is called."""
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"(: ErrImagePull)?:? ?')


@dataclass(frozen=True)
class Hold:
    """What holds an attempt up; ``queued`` means for room, ``stalled`` that only a person can help."""

    reason: str
    message: str
    queued: bool = False
    stalled: bool = False
    again: timedelta | None = None


@dataclass(frozen=True)
class Silent:
    """A Job or pod that waits and does not say why: from ``due`` on, its Events are worth reading."""

    kind: str
    name: str
    due: datetime


def silent(observed: Observed) -> Silent | None:
    """The first silent one of the newest attempt, if there is one."""
    attempt = observed.attempts[-1] if observed.attempts else Attempt(0)
    for job in _unfilled(attempt):
        if due := _overdue(job):
            return Silent("Job", job.name, due)
    for pod in attempt.pods:
        if pod.created and pod.wait and pod.wait.reason == "ContainerCreating":
            return Silent("Pod", pod.name, pod.created + SILENCE)
    return None


def hold(attempt: Attempt, now: datetime) -> Hold | None:
    """None while nothing is out of the ordinary."""
    if job := attempt.suspended:
        told = f"Job {job.name} was suspended, and not by this operator; what suspended it (a queue?) lets it go on"
        return Hold(Reason.JOB_SUSPENDED, told, queued=True)
    if refused := _refused(attempt, now):
        return refused
    pods = [(pod, _steady(pod.wait)) for pod in attempt.pods if pod.wait and not pod.end and not _first_word(pod, now)]
    reasons = Counter(wait.reason for _, wait in pods if wait.reason != "ContainerCreating" or wait.message)
    if not reasons:
        return None
    reason = max(reasons, key=lambda one: (one in _MENDS, reasons[one]))
    pod, wait = next(pair for pair in pods if pair[1].reason == reason)
    left = pod.created + PATIENCE - now if pod.created and (reason in _MENDS or _MISSING.search(wait.message)) else None
    told = f"{_count(reasons[reason], attempt, pod)}: {reason}: {wait.message}"
    return Hold(
        reason,
        with_mends(told) if mends(told) or reason not in _MENDS else f"{told}; {_MENDS[reason]}",
        queued=reason in _QUEUED,
        stalled=left is not None and left <= timedelta(0),
        again=left if left is not None and left > timedelta(0) else None,
    )


def untold(attempt: Attempt, now: datetime) -> timedelta | None:
    """How long what the scheduler says of new pods is still kept back; None when nothing is."""
    return max((left for pod in attempt.pods if (left := _first_word(pod, now))), default=None)


def _first_word(pod: Pod, now: datetime) -> timedelta | None:
    if not (pod.created and pod.wait and pod.wait.reason == "Unschedulable"):
        return None
    left = pod.created + FIRST_WORD - now
    return left if left > timedelta(0) else None


def _refused(attempt: Attempt, now: datetime) -> Hold | None:
    for job in _unfilled(attempt):
        if job.refused:
            told = f"Job {job.name} may not create {_missing(job, attempt)}: {job.refused}"
            return Hold(Reason.PODS_REFUSED, with_mends(told), queued=True)
        due = _overdue(job)
        if due is None or now < due:
            continue
        if job.started is None and not any(pod.slice == job.slice for pod in attempt.pods):
            told = f"the Job controller has not taken up Job {job.name} yet; is kube-controller-manager at work?"
            return Hold(Reason.JOB_NOT_STARTED, told, queued=True)
        advice = f"`kubectl describe job {job.name}` tells why (a quota, or an admission webhook)"
        return Hold(Reason.PODS_REFUSED, f"Job {job.name} lacks {_missing(job, attempt)}: {advice}", queued=True)
    return None


def _unfilled(attempt: Attempt) -> Iterator[Job]:
    """The Jobs at work that have fewer pods than they ask for."""
    have = Counter(pod.slice for pod in attempt.pods)
    for job in attempt.jobs:
        at_work = job.state is JobState.ACTIVE and not job.suspended and not job.deleting
        if at_work and have[job.slice] < job.completions:
            yield job


def _overdue(job: Job) -> datetime | None:
    """From when on pods that are missing will not come by themselves."""
    if job.started:
        return job.started + SILENCE
    return job.created + PATIENCE if job.created else None


def _missing(job: Job, attempt: Attempt) -> str:
    missing = job.completions - sum(pod.slice == job.slice for pod in attempt.pods)
    return "its pods" if missing == job.completions else f"{missing} of its {job.completions} pods"


def _count(count: int, attempt: Attempt, pod: Pod) -> str:
    return f"pod {pod.name}" if attempt.desired == 1 else f"{count} of {attempt.desired} pods"


def _steady(wait: Wait) -> Wait:
    """A pod whose image cannot be pulled alternates between two reasons; told as one, the status does not flap."""
    if wait.reason not in ("ErrImagePull", _PULL):
        return wait
    return Wait(_PULL, _BACK_OFF.sub("", wait.message))
