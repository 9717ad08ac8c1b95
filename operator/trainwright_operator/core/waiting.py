"""Why an attempt's pods do not run yet, in the words of the scheduler, the kubelet or the quota, and the fix.

Ready pods that cannot find each other look like any that load. So node 0 reports when all have met, and whom it waits
for when they have not. Where nothing of the pods gets through, a closed network as much as broken DNS, the status says
that nothing was heard, and where they should meet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api.names import Condition, Reason
from trainwright_operator.core.fixes import fixes_for, with_fixes
from trainwright_operator.core.observe import Attempt, Job, JobState, Observed, Pod, Wait
from trainwright_operator.core.quantities import amount
from trainwright_operator.core.times import read_time, remaining

PATIENCE = timedelta(seconds=60)
"""How long a pod may fail to start before the job counts as stalled: what it needs may be applied a moment later."""
SILENCE = timedelta(seconds=3)
"""Pods that have not appeared so long after the Job controller took their Job up were refused to it."""
FIRST_WORD = timedelta(seconds=3)
"""What the scheduler says of newer pods is not shown: the claim, or the node, often comes a moment after them."""

_PULL = "ImagePullBackOff"
_FIXES = {
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
    """What holds an attempt up; ``queued`` means for room, ``stalled`` that only a person can help.

    ``unheard`` means that who decides was asked a moment ago: the answer is waited for before anything is written.
    """

    reason: str
    message: str
    queued: bool = False
    stalled: bool = False
    again: timedelta | None = None
    unheard: bool = False


@dataclass(frozen=True)
class Silent:
    """A Job or pod that waits and does not say why: after a while its Events are worth reading."""

    kind: str
    name: str
    since: datetime
    span: timedelta

    def left(self, now: datetime, longer: timedelta = timedelta(0)) -> timedelta:
        return remaining(self.since, self.span + longer, now)


def silent(observed: Observed) -> Silent | None:
    """The first silent one of the newest attempt, if there is one."""
    attempt = observed.attempts[-1] if observed.attempts else Attempt(0)
    for job in _unfilled(attempt):
        if (since := _last_sign(job, attempt)) is not None:
            return Silent("Job", job.name, since, _silence(job))
    for pod in attempt.pods:
        if pod.created and pod.wait and pod.wait.reason == "ContainerCreating":
            return Silent("Pod", pod.name, pod.created, SILENCE)
    return None


def hold(attempt: Attempt, now: datetime) -> Hold | None:
    """None while nothing is out of the ordinary."""
    if job := attempt.suspended:
        if job.wanted is not None and job.wanted < job.completions:
            return _scaled_down(job)
        message = f"Job {job.name} was suspended, and not by this operator; what suspended it (a queue?) lets it go on"
        return Hold(Reason.JOB_SUSPENDED, message, queued=True)
    if refused := _refused(attempt, now):
        return refused
    pods = [(pod, _steady(pod.wait)) for pod in attempt.pods if pod.wait and not pod.end and not _first_word(pod, now)]
    reasons = Counter(wait.reason for _, wait in pods if wait.reason != "ContainerCreating" or wait.message)
    if not reasons:
        return None
    reason = max(reasons, key=lambda one: (one in _FIXES, reasons[one]))
    pod, wait = next(pair for pair in pods if pair[1].reason == reason)
    lacks = pod.created and (reason in _FIXES or _MISSING.search(wait.message))
    left = remaining(pod.created, PATIENCE, now) if pod.created and lacks else None
    message = f"{_count(reasons[reason], attempt, pod)}: {reason}: {wait.message}"
    return Hold(
        reason,
        with_fixes(message) if fixes_for(message) or reason not in _FIXES else f"{message}; {_FIXES[reason]}",
        queued=reason in _QUEUED,
        stalled=left is not None and left <= timedelta(0),
        again=left if left is not None and left > timedelta(0) else None,
    )


def withheld(attempt: Attempt, now: datetime) -> timedelta | None:
    """How long what the scheduler says of new pods is still kept back; None when nothing is."""
    return max((left for pod in attempt.pods if (left := _first_word(pod, now))), default=None)


def _first_word(pod: Pod, now: datetime) -> timedelta | None:
    if not (pod.created and pod.wait and pod.wait.reason == "Unschedulable"):
        return None
    return remaining(pod.created, FIRST_WORD, now) or None


def _scaled_down(job: Job) -> Hold:
    patch = f'{{"spec":{{"parallelism":{job.completions}}}}}'
    message = (
        f"Job {job.name} was set to {job.wanted} of its {job.completions} pods (spec.parallelism), and not by this "
        f"operator; `kubectl patch job {job.name} --type merge -p '{patch}'` lets it go on"
    )
    return Hold(Reason.JOB_SCALED_DOWN, message, queued=True, stalled=True)


def _refused(attempt: Attempt, now: datetime) -> Hold | None:
    for job in _unfilled(attempt):
        if job.refused:
            message = with_fixes(f"Job {job.name} may not create {_missing(job, attempt)}: {job.refused}")
            since = None if _waits_for_room(job.refused) else job.started or job.created
            left = remaining(since, PATIENCE, now) if since else None
            return Hold(Reason.PODS_REFUSED, message, queued=True, stalled=left == timedelta(0), again=left or None)
        since = _last_sign(job, attempt)
        if since is None or remaining(since, _silence(job), now):
            continue
        if job.started is None and not any(pod.slice == job.slice for pod in attempt.pods):
            message = f"the Job controller has not taken up Job {job.name} yet; is kube-controller-manager at work?"
            return Hold(Reason.JOB_NOT_STARTED, message, queued=True)
        advice = f"`kubectl describe job {job.name}` tells why (a quota, or an admission webhook)"
        return Hold(Reason.PODS_REFUSED, f"Job {job.name} lacks {_missing(job, attempt)}: {advice}", queued=True)
    return None


def _waits_for_room(refused: str) -> bool:
    """For a quota that lets the pods in once others have ended; whatever else refuses them needs a person."""
    quotas = re.findall(r"exceeded quota: [^,]*, requested: (\S*), used: \S*, limited: (\S*)", refused)
    try:
        return bool(quotas) and all(_fits(*amounts) for amounts in quotas)
    except ValueError:
        return True


def _fits(requested: str, limited: str) -> bool:
    limits = dict(pair.split("=", 1) for pair in limited.split(","))
    pairs = (pair.split("=", 1) for pair in requested.split(","))
    return all(amount(wanted) <= amount(limits[name]) for name, wanted in pairs if name in limits)


def _unfilled(attempt: Attempt) -> Iterator[Job]:
    """The Jobs at work that have fewer pods than they ask for."""
    have = Counter(pod.slice for pod in attempt.pods)
    for job in attempt.jobs:
        at_work = job.state is JobState.ACTIVE and not job.suspended and not job.deleting
        if at_work and have[job.slice] < job.completions:
            yield job


def _last_sign(job: Job, attempt: Attempt) -> datetime | None:
    """When the Job controller last created a pod, or took the Job up: a gang of thousands takes it a minute."""
    begun = job.started or job.created
    created = [pod.created for pod in attempt.pods if pod.slice == job.slice and pod.created]
    return max([begun, *created]) if begun else None


def _silence(job: Job) -> timedelta:
    """How long after its controller took it up, or it was created, pods that are missing may come by themselves."""
    return SILENCE if job.started else PATIENCE


def _missing(job: Job, attempt: Attempt) -> str:
    missing = job.completions - sum(pod.slice == job.slice for pod in attempt.pods)
    return "its pods" if missing == job.completions else f"{missing} of its {job.completions} pods"


def _count(count: int, attempt: Attempt, pod: Pod) -> str:
    return f"pod {pod.name}" if attempt.desired == 1 else f"{count} of {attempt.desired} pods"


def _steady(wait: Wait) -> Wait:
    """A pod whose image cannot be pulled alternates between two reasons; shown as one, the status does not flap."""
    if wait.reason not in ("ErrImagePull", _PULL):
        return wait
    return Wait(_PULL, _BACK_OFF.sub("", wait.message))


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
    message = (
        f"the pods run, and none has said that they have met: they start still, wait for node 0 at {where}, or do not "
        f"reach the operator; their logs say which; check that a NetworkPolicy lets them reach one another and the "
        f"operator, the Service {service} and the cluster's DNS"
    )
    return Hold(Reason.PODS_NOT_MET, message), None


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
