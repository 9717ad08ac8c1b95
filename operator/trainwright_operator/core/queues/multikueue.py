"""A TrainingJob with ``spec.managedBy: kueue.x-k8s.io/multikueue``: it trains in another cluster, which Kueue chooses.

In this cluster, the manager's, the operator makes the Workload and creates nothing else. Kueue reserves quota here,
copies Workload and job to a worker cluster, and copies the whole status of that job back for as long as the worker has
it. So the status is written here only while no worker has the job, or both would overwrite each other.

When Kueue takes the job from the worker, the quota is returned once the job there is at rest, or its cluster is lost.
The next worker goes on from the checkpoint if it sees the same output: the Workload carries the uid that checkpoints
belong to, and the number of the last attempt.

What a worker cluster does with the copy is in ``kueue``: it adopts the prebuilt Workload in place of making one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.history import Cause, History, Outcome
from trainwright_operator.core.observe import OVERDUE, Observed
from trainwright_operator.core.placement.vendor import Placement
from trainwright_operator.core.policy import FINISHED, Phase, Verdict
from trainwright_operator.core.queues import kueue
from trainwright_operator.core.queues.kueue import Change, Followed, Queue
from trainwright_operator.core.queues.workload import On, Workload
from trainwright_operator.core.times import read_time, remaining
from trainwright_operator.core.waiting import Hold

NO_KUEUE = (
    f"spec.managedBy is {names.MULTIKUEUE}, and this operator follows no Kueue: install Kueue, and restart the operator"
)
_LOST = ("Admitting remote lost", "Admitting remote no longer exists")
"""Kueue's words for a worker that it gave up, in the message of the eviction."""


@dataclass(frozen=True)
class Managed:
    """What the manager's operator does: ``verdict`` is None while the status is the worker's."""

    verdict: Verdict | None = None
    held: Hold | None = None
    create: tuple[dict[str, Any], ...] = ()
    followed: Followed = field(default_factory=Followed)


def manage(job: TrainingJob, place: Placement | None, queue: Queue, now: datetime) -> Managed:
    """``place`` is where an attempt would run by the pools of this cluster, which the Workload's quota follows from;
    None if that cannot be said any more."""
    found = queue.workload
    if queue.trouble:
        return _waits(job, found, Hold(Reason.QUEUE_UNUSABLE, queue.trouble, queued=True, stalled=True), now)
    if job.status.get("state") in FINISHED:
        return Managed(followed=kueue.released(found) if found and (found.finished or found.deleting) else Followed())
    if job.spec.suspend:
        verdict = Verdict(Phase.SUSPENDED, Reason.SUSPENDED, "spec.suspend is true", _closed(job, found, now))
        return Managed(verdict, followed=_withdrawn(found))
    if not kueue.queue_of(job):
        message = f"spec.managedBy is {names.MULTIKUEUE}: set the label {kueue.LABEL_QUEUE}, or remove the field"
        held = Hold(Reason.QUEUE_UNUSABLE, message, queued=True, stalled=True)
        return replace(_waits(job, found, held, now), followed=_withdrawn(found))
    if found and found.finished and not found.deleting:
        return _finished(job, found, now)
    if found and found.reserved and (found.admitted or found.evicted):
        return Managed(followed=_mirrored(job, queue, found, now))
    if place is None:
        return Managed()
    held_up = kueue.hold(job, place, queue, now)
    history = _closed(job, found, now)
    at_rest = Verdict(Phase.STARTING, Reason.PODS_STARTING, "", history)
    followed = kueue.follow(job, queue, at_rest, place, Observed(), now)
    if held_up is None:
        return Managed(followed=followed)
    verdict = replace(at_rest, reason=held_up.reason, message=held_up.message, history=replace(history, started=None))
    return Managed(verdict, held_up, kueue.missing(job, place, queue), followed)


def _waits(job: TrainingJob, found: Workload | None, held: Hold, now: datetime) -> Managed:
    return Managed(Verdict(Phase.STARTING, held.reason, held.message, _closed(job, found, now)), held)


def _withdrawn(found: Workload | None) -> Followed:
    """Kueue takes the job from the worker when its Workload here is gone."""
    if found is None:
        return Followed()
    return kueue.released(found) if found.deleting else kueue.withdrawn(found)


def _closed(job: TrainingJob, found: Workload | None, now: datetime) -> History:
    """What the worker told last; an attempt that it had at work has stopped, as far as this cluster is concerned."""
    history = History.of(job.status)
    if not history.open:
        return history
    why = found.condition(On.EVICTED) if found else {}
    cause = Cause(
        Outcome.STOPPED, why.get("reason") or Reason.WORKLOAD_DELETED, why.get("message") or "taken from its worker"
    )
    return history.update(replace(history.open, end=now, cause=cause))


def _finished(job: TrainingJob, found: Workload, now: datetime) -> Managed:
    """Kueue has copied the worker's last status before it finished the Workload; if it could not, say how it ended."""
    end = found.condition(On.FINISHED)
    reason, message = end.get("reason") or Reason.UNKNOWN, end.get("message") or "the Workload was finished"
    history, followed = _closed(job, found, now), kueue.released(found)
    if reason == kueue.FAILED_TO_START:
        held = Hold(reason, f"queue {kueue.queue_of(job)}: {message}", queued=True, stalled=True)
        return Managed(Verdict(Phase.STARTING, reason, message, history), held, followed=followed)
    phase = Phase.SUCCEEDED if reason == "Succeeded" else Phase.FAILED
    return Managed(Verdict(phase, reason, message, history), followed=followed)


def _mirrored(job: TrainingJob, queue: Queue, found: Workload, now: datetime) -> Followed:
    """While a worker has the job: its readiness is written to the Workload here, and its end returns the quota."""
    if not found.evicted:
        phase = Phase.RUNNING if job.status.get("state") == Phase.RUNNING else Phase.STARTING
        verdict = Verdict(phase, "", "its pods are not ready in the worker cluster", History.of(job.status))
        return Followed(tuple(kueue.running(job, queue, verdict, now)))
    if left := _patience(job, found, now):
        return Followed(again=left)
    return Followed(tuple(_returned(job, found, now)))


def _patience(job: TrainingJob, found: Workload, now: datetime) -> timedelta | None:
    """How much longer the worker may take to stop its attempt; None when it has, or when it is lost."""
    eviction = found.condition(On.EVICTED)
    lost = any(word in (eviction.get("message") or "") for word in _LOST)
    if lost or not History.of(job.status).open:
        return None
    grace = timedelta(seconds=job.spec.termination_grace_period_seconds) + OVERDUE
    return remaining(read_time(eviction.get("lastTransitionTime")) or now, grace, now) or None


def _returned(job: TrainingJob, found: Workload, now: datetime) -> Iterator[Change]:
    """The number of the last attempt first: the next worker reads it from the copy."""
    number = str(kueue.attempts_so_far(job.status))
    if (found.stored["metadata"].get("annotations") or {}).get(names.ANNOTATION_ATTEMPTS) != number:
        yield Change({"metadata": {"annotations": {names.ANNOTATION_ATTEMPTS: number}}}, of_status=False)
    yield kueue.requeued(found, now)
