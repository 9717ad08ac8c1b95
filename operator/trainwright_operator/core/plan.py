"""What to do for one TrainingJob now: a pure function of the job, its pool, what the cluster holds of it, and the time.

A :class:`Plan` lists the children to create and to delete, the status to write, the events to record, and when to plan
again. The operator carries it out in a cluster, ``trainwright run`` carries it out as processes on this machine, and
``trainwright plan`` prints it. Planning again over the result of a plan changes nothing.

:func:`plan` takes these steps, each in a module of its own:

1. ``policy`` decides: start an attempt, let the one at work go on, stop it, or call the job finished.
2. For a new attempt ``placement`` says where its pods run, ``gangs`` how they start together, and ``children`` renders
   the objects.
3. ``queues`` lets it wait for quota, if the job is in a queue, and follows what becomes of that quota.
4. ``waiting`` finds out why pods do not run or do not train yet.
5. ``status`` renders the status, and ``events`` what is new in it.
6. ``cleanup`` lists the children that are no longer needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core import elastic, probing
from trainwright_operator.core.children import children, gang_objects, hashed, service, service_name
from trainwright_operator.core.cleanup import Delete, expired, leftovers, stop_jobs
from trainwright_operator.core.events import Event, events
from trainwright_operator.core.gangs import ONE_BY_ONE, Gangs, GangScheduler
from trainwright_operator.core.goodput import Terms, accounted
from trainwright_operator.core.grace import warning as grace_warning
from trainwright_operator.core.grace import with_warning
from trainwright_operator.core.history import Cause, History, Outcome, Record
from trainwright_operator.core.observe import Attempt, Observed
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.placement.vendor import Placement, PoolError
from trainwright_operator.core.pods import PushEndpoint
from trainwright_operator.core.policy import FINISHED, Phase, Verdict, adopt, budget, deadline_left, decide, soonest
from trainwright_operator.core.progress import Status, merge_final_word
from trainwright_operator.core.queues import kueue, multikueue
from trainwright_operator.core.status import render
from trainwright_operator.core.times import read_time
from trainwright_operator.core.waiting import Hold, hold, unmet, withheld

Object = dict[str, Any]

FORMER_OWNER = timedelta(seconds=2)
"""How often to look whether the children of a deleted TrainingJob of the same name are gone."""


@dataclass(frozen=True)
class Plan:
    """Carried out in this order: ``apply``, ``queue``, ``delete``, ``restore``, then a changed ``status``, ``events``.

    A child in ``apply`` that cannot be created fails the whole plan; one in ``restore`` is what an attempt at work has
    lost, and the rest of the plan holds without it, as without ``probe``. ``queue`` changes the job's Workload.
    ``requeue_after`` is in seconds; None waits for the next change.
    """

    status: Status
    apply: tuple[Object, ...] = ()
    queue: tuple[kueue.Change, ...] = ()
    restore: tuple[Object, ...] = ()
    probe: tuple[Object, ...] = ()
    delete: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = field(default=())
    requeue_after: float | None = None


def plan(
    job: TrainingJob,
    pool: AcceleratorPool | None,
    observed: Observed,
    now: datetime,
    endpoint: PushEndpoint | None = None,
    gangs: Gangs = ONE_BY_ONE,
    queue: kueue.Queue | None = None,
) -> Plan:
    """The plan for ``job``, whose status is the one last written.

    ``pool`` is None when there is none of the name that the job asks for. ``endpoint`` is where pods push progress, if
    anywhere. ``gangs`` is how the cluster starts pods together. ``queue`` is None for a job that is in no queue.
    """
    now = now.replace(microsecond=0)
    if job.deletion_timestamp:
        return _plan_for_deleted(job, observed, now, queue)
    if job.spec.managed_by and queue:
        return _plan_of_manager(job, pool, queue, now)
    inputs = _Inputs(job, pool, endpoint, gangs.of(job, pool), queue)
    history = adopt(job, History.of(job.status), observed, now)
    at_work = observed.attempt(history.open.number) if history.open else None
    before = merge_final_word(job.status, at_work) if at_work else dict(job.status)
    withdrawn = kueue.withdrawal(at_work, queue) if queue and at_work else None
    size = None if withdrawn or queue else probing.growth(job, History.of(before), observed, now)
    if size and history.open:
        withdrawn = probing.message(history.open, size)
    decision = _Decision(decide(job, History.of(before), observed, now, inputs.scheduler, withdrawn, size))
    if decision.verdict.start is not None:
        decision = _start(inputs, decision.verdict, history.renewed, observed, now).within_deadline(job, now)
        if decision.held and decision.held.unheard:
            wait = seconds(decision.held.again)
            return Plan(dict(job.status), apply=decision.create, queue=decision.changes, requeue_after=wait)
    elif at_work and _half_created(at_work, decision.verdict):
        decision = _complete(inputs, decision.verdict, at_work, now)
    verdict = decision.verdict
    current = at_work if verdict.history.open else None
    held, look_again = _waiting(before, current, verdict, now)
    held = decision.held or held
    status = render(before, job.generation, verdict, current, held, now, decision.pods)
    status = accounted(before, status, inputs.terms(verdict.history.open or history.open), now)
    status = with_warning(status, grace_warning(job, pool, status.get("goodput") or {}))
    expired_children, expires_in = expired(job, observed, verdict, now)
    probe, without, probe_again = _probe(inputs, verdict, observed, now)
    followed = kueue.follow(job, queue, verdict, decision.placement, observed, now) if queue else kueue.Followed()
    existing = {each.name for attempt in observed.attempts for each in attempt.jobs}
    return Plan(
        status=status,
        apply=tuple(child for child in decision.create if child["metadata"]["name"] not in existing),
        queue=(*decision.changes, *followed.changes),
        restore=_lost_service(job, current, observed, verdict),
        probe=probe,
        delete=(*leftovers(observed, verdict, history), *expired_children, *followed.delete, *without),
        events=events(job.status, status),
        requeue_after=seconds(
            verdict.again, held.again if held else None, look_again, expires_in, followed.again, probe_again
        ),
    )


@dataclass(frozen=True)
class _Inputs:
    """What the children of an attempt follow from, beside its number."""

    job: TrainingJob
    pool: AcceleratorPool | None
    endpoint: PushEndpoint | None
    scheduler: GangScheduler
    queue: kueue.Queue | None = None

    @property
    def queued(self) -> kueue.Queue | None:
        """The queue that the job asks for; None if it asks for none any more."""
        return self.queue if kueue.queue_of(self.job) else None

    def place(self, pool: AcceleratorPool) -> Placement:
        """Where an attempt that may start runs; raises :class:`PoolError`."""
        found = place(self.job, pool)
        return kueue.placed(self.job, found, self.queued) if self.queued and self.queued.workload else found

    def terms(self, record: Record | None) -> Terms:
        """What the job's account follows from; ``record`` is that of the attempt at work, if one is."""
        price = self.pool.price if self.pool else None
        return Terms(
            created=read_time(self.job.creation_timestamp),
            accelerators=lambda: self.accelerators(record.nodes if record else None),
            price=float(price["perAcceleratorHour"]) if price else None,
            currency=price["currency"] if price else "",
            scripted=self.job.spec.script is not None,
        )

    def accelerators(self, nodes: int | None) -> int:
        """Those of an attempt with so many nodes, by default as many as the job asks for."""
        try:
            found = place(elastic.sized(self.job, nodes) if nodes else self.job, self.pool) if self.pool else None
        except PoolError:
            found = None
        return found.pods * found.devices if found else 0

    def sized(self, nodes: int) -> _Inputs:
        """For an attempt of an elastic job with so many nodes."""
        return replace(self, job=elastic.sized(self.job, nodes))

    def children(self, placement: Placement, number: int, history: History) -> tuple[Object, ...]:
        return children(self.job, placement, number, self.endpoint, self.scheduler, budget(self.job, history))


@dataclass(frozen=True)
class _Decision:
    """A verdict with the children to create for it, and what holds an attempt up that may not start yet.

    ``placement`` is where an attempt would start, before a queue narrows that down.
    """

    verdict: Verdict
    create: tuple[Object, ...] = ()
    held: Hold | None = None
    placement: Placement | None = None
    changes: tuple[kueue.Change, ...] = ()

    @property
    def pods(self) -> int:
        return sum(child["spec"]["completions"] for child in self.create if child["kind"] == "Job")

    def within_deadline(self, job: TrainingJob, now: datetime) -> _Decision:
        """The deadline goes on while something stands in the way of an attempt."""
        again = soonest(self.verdict.again, deadline_left(job, self.verdict.history, now))
        return replace(self, verdict=replace(self.verdict, again=again))


# Creating an attempt


def _start(inputs: _Inputs, verdict: Verdict, before: History, observed: Observed, now: datetime) -> _Decision:
    """Create the attempt of ``verdict``, or say why it cannot start; ``before`` is the history without it."""
    job, number = inputs.job, verdict.start
    assert number is not None
    placement = _placement(job, inputs.pool, before)
    if isinstance(placement, Verdict):
        return _Decision(placement)
    assert inputs.pool
    if inputs.queued:
        if held := kueue.hold(job, placement, inputs.queued, now):
            waiting = Verdict(Phase.STARTING, held.reason, held.message, replace(before, started=None))
            return _Decision(waiting, kueue.missing(job, placement, inputs.queued), held, placement)
        try:
            placement = inputs.place(inputs.pool)
        except PoolError as error:
            ended = kueue.failed_to_start(inputs.queued, str(error), now)
            return _Decision(blocked(before, Reason.POOL_UNUSABLE, str(error)), changes=ended)
    if held := inputs.scheduler.hold(job, observed, now):
        waiting = Verdict(Phase.STARTING, held.reason, held.message, before)
        return _Decision(waiting, gang_objects(job, placement, number, inputs.scheduler), held)
    size = _size(inputs, verdict)
    if size:
        inputs, verdict = inputs.sized(size), _with_size(verdict, size)
        assert inputs.pool
        placement = inputs.place(inputs.pool)
    create = inputs.children(placement, number, verdict.history)
    for child in create:
        if owner := observed.foreign.get(child["metadata"]["name"]):
            return _Decision(conflict(job, before, f"{child['kind']} {child['metadata']['name']}", owner))
    return _Decision(verdict, create)


def _placement(job: TrainingJob, pool: AcceleratorPool | None, before: History | None = None) -> Placement | Verdict:
    """Where an attempt would run, or the verdict that it cannot."""
    before = before or History.of(job.status)
    if pool is None:
        wanted = job.spec.accelerator.pool
        message = f"accelerator pool {wanted!r} does not exist; `kubectl get {names.POOL_PLURAL}` lists those that do"
        return blocked(before, Reason.POOL_NOT_FOUND, message)
    try:
        return place(job, pool)
    except PoolError as error:
        return blocked(before, Reason.POOL_UNUSABLE, str(error))


def _size(inputs: _Inputs, verdict: Verdict) -> int | None:
    """The nodes of the attempt of an elastic job: as many as its record says, and as its quota is for."""
    record = verdict.history.open
    if record is None or record.nodes is None:
        return None
    admitted = kueue.admitted_pods(inputs.queued) if inputs.queued else None
    return record.nodes if admitted is None else min(record.nodes, elastic.fitting(inputs.job, admitted))


def _with_size(verdict: Verdict, size: int) -> Verdict:
    record = verdict.history.open
    return replace(verdict, history=verdict.history.update(replace(record, nodes=size))) if record else verdict


def _half_created(attempt: Attempt, verdict: Verdict) -> bool:
    """Only some slices have their Job: the operator stopped between creating two of them, or one was refused."""
    record = verdict.history.open
    return bool(record and not record.cause and attempt.jobs and not attempt.whole and not verdict.stop)


def _complete(inputs: _Inputs, verdict: Verdict, attempt: Attempt, now: datetime) -> _Decision:
    """Create what is missing of a half-created attempt; give it up when its Jobs would be rendered otherwise today."""
    record = verdict.history.open
    if record and record.nodes:
        inputs = inputs.sized(record.nodes)
    try:
        place = inputs.place(inputs.pool) if inputs.pool else None
        create = inputs.children(place, attempt.number, verdict.history) if place else ()
    except PoolError:
        create = ()
    hashes = {child["metadata"]["name"]: child["metadata"]["annotations"][names.ANNOTATION_HASH] for child in create}
    if all(hashes.get(each.name) == each.digest for each in attempt.jobs):
        return _Decision(verdict, create)
    record = verdict.history.open
    assert record
    message = (
        f"{len(attempt.jobs)} of {attempt.jobs[0].slices} slices had their Job when the pool or the operator changed"
    )
    cause = Cause(Outcome.DISRUPTED, Reason.ATTEMPT_INCOMPLETE, message, time=now)
    history = verdict.history.update(replace(record, cause=cause))
    return _Decision(Verdict(Phase.RESTARTING, cause.reason, message, history, stop=True))


def conflict(job: TrainingJob, history: History, child: str, owner: str) -> Verdict:
    """``child`` (``Service tj-gpt``) exists and belongs to ``owner`` (``CronJob/x``)."""
    if owner == f"{names.JOB_KIND}/{job.name}":
        message = f"{child} of a deleted TrainingJob with this name is still there; waiting until it is gone"
        return Verdict(Phase.PENDING, Reason.WAITING_FOR_FORMER, message, history, again=FORMER_OWNER)
    message = f"{child} exists and belongs to {owner}; delete it, or give this job another name"
    return blocked(history, Reason.NAME_TAKEN, message)


def blocked(history: History, reason: str, message: str) -> Verdict:
    """No attempt can start until a person helps."""
    return Verdict(Phase.PENDING, reason, message, history, blocked=True)


# An attempt at work


def _waiting(
    status: Status, attempt: Attempt | None, verdict: Verdict, now: datetime
) -> tuple[Hold | None, timedelta | None]:
    """What holds the attempt up, and when to look again at what may still come by itself."""
    if attempt is None or verdict.stop:
        return None, None
    if verdict.phase in (Phase.STARTING, Phase.RESTARTING):
        return hold(attempt, now), withheld(attempt, now)
    return unmet(status, attempt, now) if verdict.phase is Phase.RUNNING else (None, None)


def _lost_service(
    job: TrainingJob, attempt: Attempt | None, observed: Observed, verdict: Verdict
) -> tuple[Object, ...]:
    """The Service of an attempt at work, when it was deleted: pods that have not met yet cannot meet without it."""
    if attempt is None or observed.services is None or verdict.stop or attempt.desired < 2:
        return ()
    return () if service_name(job) in observed.services else (hashed(service(job)),)


def _probe(
    inputs: _Inputs, verdict: Verdict, observed: Observed, now: datetime
) -> tuple[tuple[Object, ...], tuple[Delete, ...], timedelta | None]:
    """The probe of an elastic job to create, or to delete, and when to look again."""
    job, history = inputs.job, verdict.history
    left = probing.due(job, history, now) if verdict.phase is Phase.RUNNING and not verdict.stop else None
    seen, record = observed.probe, history.open
    if left is None or left > timedelta(0) or inputs.queue or record is None or inputs.pool is None:
        gone = (Delete("batch/v1", "Job", probing.probe_name(job)),) if seen and not seen.deleting else ()
        return (), gone, left if not inputs.queue else None
    again = probing.look_again(job, history, observed, now)
    try:
        placement = inputs.place(inputs.pool)
    except PoolError:
        return (), (), again
    wanted = seen is None and not placement.device_class
    return (probing.probe(job, placement, record),) if wanted else (), (), again


# A job that trains in another cluster


def _plan_of_manager(job: TrainingJob, pool: AcceleratorPool | None, queue: kueue.Queue, now: datetime) -> Plan:
    """Its Workload and nothing else; the status is ours as long as no other cluster has the job."""
    placed = _placement(job, pool)
    if isinstance(placed, Verdict) and queue.workload is None and job.status.get("state") not in FINISHED:
        status = render(job.status, job.generation, placed, None, None, now)
        return Plan(status, events=events(job.status, status))
    managed = multikueue.manage(job, None if isinstance(placed, Verdict) else placed, queue, now)
    held, verdict = managed.held, managed.verdict
    if verdict is None or (held and held.unheard):
        status = dict(job.status)
    else:
        status = render(job.status, job.generation, verdict, None, held, now)
    return Plan(
        status=status,
        apply=managed.create,
        queue=managed.followed.changes,
        delete=managed.followed.delete,
        events=events(job.status, status),
        requeue_after=seconds(managed.followed.again, held.again if held else None),
    )


# A job that is being deleted

_GARBAGE_COLLECTION = frozenset({"foregroundDeletion", "orphan"})


def _plan_for_deleted(job: TrainingJob, observed: Observed, now: datetime, queue: kueue.Queue | None) -> Plan:
    """Garbage collection deletes the children, but not while somebody's finalizer keeps the job.

    Nobody can take a deletion back, so the attempt is stopped at once: what it trains until then is lost anyway.
    """
    let_go = kueue.of_deleted(queue, observed, now) if queue else ()
    holders = [one for one in job.finalizers if one not in _GARBAGE_COLLECTION]
    if not holders or "orphan" in job.finalizers:
        return Plan(status=dict(job.status), queue=let_go)
    message = f"it is being deleted, and waits for whoever set them to remove its finalizers: {', '.join(holders)}"
    history = History.of(job.status)
    if job.status.get("state") in FINISHED:
        shown = {**job.status["display"], "state": f"{job.status['state']} ({Reason.DELETING})", "why": message}
        return Plan({**job.status, "observedGeneration": job.generation, "display": shown}, queue=let_go)
    current = observed.attempt(history.open.number) if history.open else None
    verdict = Verdict(Phase.STOPPING, Reason.DELETING, message, history)
    status = render(job.status, job.generation, verdict, current, Hold(Reason.DELETING, message), now)
    status = accounted(job.status, status, Terms(read_time(job.creation_timestamp)), now)
    return Plan(status, queue=let_go, delete=tuple(stop_jobs(*observed.attempts)))


def seconds(*times: timedelta | None) -> float | None:
    """The soonest of ``times``, as ``requeue_after`` takes it."""
    return min((max(0.0, time.total_seconds()) for time in times if time is not None), default=None)
