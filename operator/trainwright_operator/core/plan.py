"""The plan: what to apply, what to delete, the status to write, the events to tell, and when to look again.

A pure function of the job (with the status last written), its pool, what was observed, and the time. The operator, the
local runner and ``trainwright plan`` carry out the same plan; planning again over its result changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import AcceleratorPool, JobSpec, Output, TrainingJob
from trainwright_operator.core.children import beside, children, hashed, service, service_name
from trainwright_operator.core.events import Event, events
from trainwright_operator.core.fixes import with_mends
from trainwright_operator.core.gangs import ONE_BY_ONE, Gangs, GangScheduler
from trainwright_operator.core.history import Cause, Outcome, Past
from trainwright_operator.core.observe import Attempt, Job, Observed, observe
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.placement.vendor import PoolError
from trainwright_operator.core.pods import Endpoint
from trainwright_operator.core.policy import FINISHED, Phase, Verdict, adopt, deadline_left, decide, done_words, soonest
from trainwright_operator.core.progress import Status, merge_final_word
from trainwright_operator.core.status import render, with_hindrance
from trainwright_operator.core.times import read_time
from trainwright_operator.core.waiting import Hold, hold, unmet, untold

KEPT_ATTEMPTS = 3
"""How many ended attempts keep their Jobs, for the logs of their pods."""
FORMER_OWNER = timedelta(seconds=2)
"""How often to look whether the children of a deleted TrainingJob of the same name are gone."""


@dataclass(frozen=True)
class Delete:
    """One child to delete; ``Foreground`` keeps a Job visible until its pods have ended."""

    api_version: str
    kind: str
    name: str
    propagation: str = "Background"


@dataclass(frozen=True)
class Plan:
    """``apply`` and ``delete`` in this order, then ``status`` where it changed, then ``events``.

    ``restore`` is what somebody took from an attempt at work; that it cannot be made again changes nothing else.
    ``requeue_after`` is in seconds; None waits for the next change.
    """

    status: Status
    apply: tuple[dict[str, Any], ...] = ()
    restore: tuple[dict[str, Any], ...] = ()
    delete: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = field(default=())
    requeue_after: float | None = None


def plan(
    job: TrainingJob,
    pool: AcceleratorPool | None,
    observed: Observed,
    now: datetime,
    endpoint: Endpoint | None = None,
    gangs: Gangs = ONE_BY_ONE,
) -> Plan:
    """``pool`` is None when there is none of that name; ``endpoint`` is where pods push progress, if anywhere."""
    now = now.replace(microsecond=0)
    if job.deletion_timestamp:
        return _leaving(job, observed, now)
    scheduler = gangs.of(job)
    past = adopt(job, Past.of(job.status), observed, now)
    at_work = observed.attempt(past.open.number) if past.open else None
    told = merge_final_word(job.status, at_work) if at_work else dict(job.status)
    verdict = decide(job, Past.of(told), observed, now, scheduler)
    made: tuple[dict[str, Any], ...] = ()
    if verdict.start is not None:
        made, verdict = _start(job, pool, observed, verdict, verdict.start, past.renewed, endpoint, scheduler)
        verdict = replace(verdict, again=soonest(verdict.again, deadline_left(job, verdict.past, now)))
    elif at_work and _half_made(at_work, verdict):
        made, verdict = _complete(job, pool, at_work, verdict, now, endpoint, scheduler)
    current = at_work if verdict.past.open else None
    waits = verdict.phase in (Phase.STARTING, Phase.RESTARTING) and not verdict.stop
    held, kept_back = (hold(current, now), untold(current, now)) if current and waits else (None, None)
    if current and verdict.phase is Phase.RUNNING and not verdict.stop:
        held, kept_back = unmet(told, current, now)
    desired = sum(child["spec"]["completions"] for child in made if child["kind"] == "Job")
    status = render(told, job.generation, verdict, current, held, now, desired)
    deletions, expiry = _expire(job, observed, verdict, now)
    known = {each.name for attempt in observed.attempts for each in attempt.jobs}
    return Plan(
        status=status,
        apply=tuple(child for child in made if child["metadata"]["name"] not in known),
        restore=_lost(job, current, observed, verdict),
        delete=(*_left_overs(observed, verdict, past.open.number if past.open else None), *deletions),
        events=events(job.status, status),
        requeue_after=_seconds(verdict.again, held.again if held else None, kept_back, expiry),
    )


_GARBAGE_COLLECTION = frozenset({"foregroundDeletion", "orphan"})


def _leaving(job: TrainingJob, observed: Observed, now: datetime) -> Plan:
    """Of a job that is being deleted: garbage collection takes its children, but not while somebody else's finalizer
    holds it. Nobody can take a deletion back, so what it trains until then is trained for nothing.
    """
    holders = [one for one in job.finalizers if one not in _GARBAGE_COLLECTION]
    if not holders or "orphan" in job.finalizers:
        return Plan(status=dict(job.status))
    words = f"it is being deleted, and waits for whoever set them to remove its finalizers: {', '.join(holders)}"
    past = Past.of(job.status)
    if job.status.get("state") in FINISHED:
        shown = {**job.status["display"], "state": f"{job.status['state']} ({Reason.DELETING})", "why": words}
        return Plan({**job.status, "observedGeneration": job.generation, "display": shown})
    current = observed.attempt(past.open.number) if past.open else None
    verdict = Verdict(Phase.STOPPING, Reason.DELETING, words, past)
    status = render(job.status, job.generation, verdict, current, Hold(Reason.DELETING, words), now)
    jobs = (each for attempt in observed.attempts for each in attempt.unfinished)
    return Plan(status, delete=tuple(_job(each, "Foreground") for each in jobs))


def refused(job: TrainingJob, observed: Observed, now: datetime, reason: str, message: str, again: float) -> Plan:
    """In the place of a plan that the API server would not take: tell why, and look ``again`` in so many seconds."""
    past = adopt(job, Past.of(job.status), observed, now)
    verdict = _blocked(past, reason, with_mends(message))
    return _instead(job, replace(verdict, again=timedelta(seconds=again)), now)


def taken(job: TrainingJob, observed: Observed, now: datetime, child: str, owner: str, again: float) -> Plan:
    """In the place of a plan whose ``child`` (``Service tj-gpt``) is there and belongs to ``owner`` (``CronJob/x``)."""
    verdict = _taken(job, adopt(job, Past.of(job.status), observed, now), child, owner)
    return _instead(job, replace(verdict, again=verdict.again or timedelta(seconds=again)), now)


def hindered(planned: Plan, why: list[str], again: float) -> Plan:
    """The plan of which something may not be deleted: a job that waits for that says why, all else is as it was."""
    status = with_hindrance(planned.status, with_mends("; ".join(why)))
    sooner = again if planned.requeue_after is None else min(again, planned.requeue_after)
    return replace(planned, status=status, requeue_after=sooner)


def _instead(job: TrainingJob, verdict: Verdict, now: datetime) -> Plan:
    status = render(job.status, job.generation, verdict, None, None, now.replace(microsecond=0))
    return Plan(status=status, events=events(job.status, status), requeue_after=_seconds(verdict.again))


def unreadable(
    stored: Mapping[str, Any],
    problems: str,
    jobs: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    now: datetime,
) -> Plan:
    """For an object that an older CRD let in and this release cannot read.

    An attempt at work is left alone until it has ended, none is started, and what is finished stays so.
    """
    meta, status = stored["metadata"], dict(stored.get("status") or {})
    if "deletionTimestamp" in meta or status.get("state") in FINISHED:
        return Plan(status=status)
    bare = JobSpec(output=Output())
    job = TrainingJob(meta["name"], bare, meta["namespace"], meta["uid"], meta.get("generation", 1), status=status)
    past = Past.of(status)
    if past.open:
        observed = observe(job, jobs, pods)
        at_work = observed.attempt(past.open.number)
        told = merge_final_word(status, at_work) if at_work else status
        judged = decide(job, Past.of(told), observed, now.replace(microsecond=0))
        if judged.past.open:
            return Plan(status=status, requeue_after=_seconds(judged.again))
        job, past = replace(job, status=told), judged.past
    if past.last and past.last.outcome is Outcome.SUCCEEDED:
        return _instead(job, Verdict(Phase.SUCCEEDED, Reason.COMPLETED, done_words(past.last), past), now)
    return _instead(job, _blocked(past, Reason.INVALID_SPEC, problems), now)


def _start(
    job: TrainingJob,
    pool: AcceleratorPool | None,
    observed: Observed,
    verdict: Verdict,
    number: int,
    past: Past,
    endpoint: Endpoint | None,
    scheduler: GangScheduler,
) -> tuple[tuple[dict[str, Any], ...], Verdict]:
    """The children of a new attempt, or a verdict that says what stands in its way."""
    if pool is None:
        wanted = job.spec.accelerator.pool
        message = f"accelerator pool {wanted!r} does not exist; `kubectl get {names.POOL_PLURAL}` lists those that do"
        return (), _blocked(past, Reason.POOL_NOT_FOUND, message)
    try:
        made = children(job, place(job, pool), number, endpoint, scheduler)
    except PoolError as error:
        return (), _blocked(past, Reason.POOL_UNUSABLE, str(error))
    for child in made:
        if owner := observed.foreign.get(child["metadata"]["name"]):
            return (), _taken(job, past, f"{child['kind']} {child['metadata']['name']}", owner)
    return made, verdict


def _lost(
    job: TrainingJob, attempt: Attempt | None, observed: Observed, verdict: Verdict
) -> tuple[dict[str, Any], ...]:
    """The Service of pods at work, when it is gone: those that have not met yet cannot without."""
    if attempt is None or observed.services is None or verdict.stop or attempt.desired < 2:
        return ()
    return () if service_name(job) in observed.services else (hashed(service(job)),)


def _half_made(attempt: Attempt, verdict: Verdict) -> bool:
    """Some slices have their Job and others do not: the operator died in between, or a Job was refused."""
    record = verdict.past.open
    return bool(record and not record.cause and attempt.jobs and not attempt.whole and not verdict.stop)


def _complete(
    job: TrainingJob,
    pool: AcceleratorPool | None,
    attempt: Attempt,
    verdict: Verdict,
    now: datetime,
    endpoint: Endpoint | None,
    scheduler: GangScheduler,
) -> tuple[tuple[dict[str, Any], ...], Verdict]:
    """The children of a half-made attempt, if they are still planned as those that exist; else it is given up."""
    try:
        made = children(job, place(job, pool), attempt.number, endpoint, scheduler) if pool else ()
    except PoolError:
        made = ()
    planned = {child["metadata"]["name"]: child["metadata"]["annotations"][names.ANNOTATION_HASH] for child in made}
    if all(planned.get(each.name) == each.digest for each in attempt.jobs):
        return made, verdict
    record = verdict.past.open
    assert record
    words = (
        f"{len(attempt.jobs)} of {attempt.jobs[0].slices} slices had their Job when the pool or the operator changed"
    )
    cause = Cause(Outcome.DISRUPTED, Reason.ATTEMPT_INCOMPLETE, words, time=now)
    past = verdict.past.update(replace(record, cause=cause))
    return (), Verdict(Phase.RESTARTING, cause.reason, words, past, stop=True)


def _taken(job: TrainingJob, past: Past, child: str, owner: str) -> Verdict:
    if owner == f"{names.JOB_KIND}/{job.name}":
        message = f"{child} of a deleted TrainingJob with this name is still there; waiting until it is gone"
        return Verdict(Phase.PENDING, Reason.WAITING_FOR_FORMER, message, past, again=FORMER_OWNER)
    message = f"{child} exists and belongs to {owner}; delete it, or give this job another name"
    return _blocked(past, Reason.NAME_TAKEN, message)


def _blocked(past: Past, reason: str, message: str) -> Verdict:
    return Verdict(Phase.PENDING, reason, message, past, blocked=True)


# Deletions


def _left_overs(observed: Observed, verdict: Verdict, was_open: int | None) -> Iterator[Delete]:
    """Jobs that must end (with time to save), and those of attempts long past.

    An attempt that has just ended keeps its Jobs until its end is known to be written: it may stand in them alone.
    """
    current = verdict.past.open.number if verdict.past.open else None
    ended = [attempt for attempt in observed.attempts if attempt.number != current]
    for attempt in observed.attempts:
        if attempt.number not in (current, was_open) or verdict.stop:
            yield from (_job(job, "Foreground") for job in attempt.unfinished)
    for attempt in ended[:-KEPT_ATTEMPTS]:
        yield from _all_of(attempt)


def _all_of(attempt: Attempt) -> Iterator[Delete]:
    for job in attempt.jobs:
        if not job.deleting and job not in attempt.unfinished:
            yield _job(job, "Background")
    for version, kind, name in dict.fromkeys(each for job in attempt.jobs for each in beside(job.pod_spec)):
        yield Delete(version, kind, name)


def _job(job: Job, propagation: str) -> Delete:
    return Delete("batch/v1", "Job", job.name, propagation)


def _expire(
    job: TrainingJob, observed: Observed, verdict: Verdict, now: datetime
) -> tuple[list[Delete], timedelta | None]:
    """After its time to live a finished job loses its children, or where it asks for that, itself.

    Not before the end is known to be written: without its children nothing else tells that it was trained.
    """
    ttl = job.spec.ttl_seconds_after_finished
    if verdict.phase not in FINISHED or ttl is None:
        return [], None
    left = (read_time(job.status.get("completionTime")) or now) + timedelta(seconds=ttl) - now
    if "completionTime" not in job.status:
        return [], left
    if left > timedelta(0):
        return [], left
    if job.spec.delete_after_finished:
        return [Delete(names.API_VERSION, names.JOB_KIND, job.name)], None
    jobs = [delete for attempt in observed.attempts for delete in _all_of(attempt)]
    several = (job.status.get("nodes") or {}).get("desired", 0) > 1
    service = [Delete("v1", "Service", service_name(job))] if jobs and several else []
    return [*service, *jobs], None


def _seconds(*times: timedelta | None) -> float | None:
    return min((max(0.0, time.total_seconds()) for time in times if time is not None), default=None)
