"""What is to be done with a TrainingJob: start an attempt, let it work, stop it, restart it, or call it finished.

The attempt is the unit of failure. What happens after one has ended is derived anew at every look from its record, the
counts of restarts, the spec and the time; nothing else is remembered. So a limit that is raised on a finished job
(maxRestarts, maxSteps, ...) takes effect by itself, and planning twice gives the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from trainwright.contract import HEALTHY_SECONDS, ResolvedJob, backoff_seconds
from trainwright_operator.api import names
from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import JobSpec, TrainingJob
from trainwright_operator.core import elastic, observe, sidecars
from trainwright_operator.core.causes import BY_HAND, GIVEN_UP, UNEXPLAINED, cause_of, succeeded, without_a_trace
from trainwright_operator.core.gangs import ONE_BY_ONE, GangScheduler
from trainwright_operator.core.gangs.gang import jitter
from trainwright_operator.core.history import Cause, History, Outcome, Record, Round
from trainwright_operator.core.observe import Observed
from trainwright_operator.core.pods import Budget
from trainwright_operator.core.times import SKEW, write_time

HEALTHY = timedelta(seconds=HEALTHY_SECONDS)
SETTLE = timedelta(seconds=10)
"""How long an ended Job's pods are waited for: the two are watched apart, and the pods tell why it ended."""
UNEXPLAINED_FREE = 3
"""How many disruptions in a row that nothing in the cluster explains, none of them further than the attempts before,
are not counted. What ends alike for ever is no disruption, and what is drained unseen is so once or twice."""
APPEAR = timedelta(seconds=15)
"""How long a Job that was just created may be missing from what is observed."""
NOW = timedelta(0)


class Phase(StrEnum):
    """``status.state``, which has one word more: Queued, while pods wait for room."""

    PENDING = "Pending"  # something stands in the way of the next attempt
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    STOPPING = "Stopping"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


FINISHED = frozenset({Phase.SUCCEEDED, Phase.FAILED})


@dataclass(frozen=True)
class Verdict:
    """``start`` names the attempt to create, ``stop`` tells to delete what is left of the attempt at work.

    ``blocked`` means that only a person can help.
    """

    phase: Phase
    reason: str
    message: str
    history: History
    start: int | None = None
    stop: bool = False
    blocked: bool = False
    again: timedelta | None = None


def decide(
    job: TrainingJob,
    history: History,
    observed: Observed,
    now: datetime,
    scheduler: GangScheduler | None = None,
    withdrawn: tuple[str, str] | None = None,
    grows_to: int | None = None,
) -> Verdict:
    """``scheduler`` starts the gangs of the job; by default its pods start one by one.

    ``withdrawn`` is why the attempt at work has to stop, as reason and message; None if it may go on. ``grows_to`` is
    the size of the next attempt of an elastic job, if that is why.
    """
    scheduler = scheduler or ONE_BY_ONE.of(job)
    history = adopt(job, history, observed, now)
    if history.open:
        return _at_work(job, history, _growing(history.open, grows_to), observed, now, scheduler, withdrawn)
    known = (observed.newest, history.last.number if history.last else 0, job.attempts_elsewhere)
    verdict = _at_rest(job, history, max(known), now)
    return _begin(job, verdict, verdict.start, now) if verdict.start else verdict


def _growing(record: Record, size: int | None) -> Record:
    return replace(record, next_nodes=size) if size and not record.cause else record


def adopt(job: TrainingJob, history: History, observed: Observed, now: datetime) -> History:
    """Open the record of an attempt that has none: the operator died between creating it and writing the status."""
    newest = next((attempt for attempt in reversed(observed.attempts) if attempt.jobs), None)
    if newest is None or newest.number <= (history.last.number if history.last else 0):
        return history
    first = newest.jobs[0]
    record = record_of(_asked(first) or job.spec.training_arguments, newest.number, first.created or now)
    return history.begin(replace(record, nodes=first.completions if elastic.asked(job) else None))


def _asked(job: observe.Job) -> Mapping[str, Any] | None:
    """The arguments that the Job was created with, if they can be read; the spec may have been changed since."""
    try:
        return ResolvedJob.from_json(job.resolved).training_arguments if job.resolved else None
    except (ValueError, TypeError, AttributeError):
        return None


def record_of(arguments: Mapping[str, Any], number: int, start: datetime) -> Record:
    """A new attempt's record, with what it is asked to train: the steps when they are given, else the epochs."""
    steps, epochs = _target(arguments)
    return Record(number, start, max_steps=steps, num_train_epochs=epochs)


def _target(arguments: Mapping[str, Any]) -> tuple[int | None, float | None]:
    steps = arguments.get("max_steps", -1)
    return (steps, None) if steps > 0 else (None, float(arguments.get("num_train_epochs", 3.0)))


def target_raised(spec: JobSpec, record: Record) -> bool:
    steps, epochs = _target(spec.training_arguments)
    if steps and record.max_steps:
        return steps > record.max_steps
    return bool(epochs and record.num_train_epochs and epochs > record.num_train_epochs)


# While an attempt is at work


def _at_work(
    job: TrainingJob,
    history: History,
    record: Record,
    observed: Observed,
    now: datetime,
    scheduler: GangScheduler,
    withdrawn: tuple[str, str] | None,
) -> Verdict:
    attempt = observed.attempt(record.number) or observe.Attempt(record.number)
    if not attempt.jobs and not attempt.pods and not record.cause and now < record.start + APPEAR:
        return _working(history, attempt, again=record.start + APPEAR - now)
    held = attempt.suspended is not None  # by another hand: that its pods go and are not there says nothing
    patience = None if history.running or held else _patience(job, record, attempt, scheduler, now)
    cause = record.cause if held else cause_of(attempt, record.cause)
    if patience is not None and patience <= NOW and not cause and elastic.asked(job):
        record = replace(record, next_nodes=elastic.smaller(job, attempt))
    cause = cause or _torn(history, attempt, now) or _crowded_out(attempt, record, patience, now)
    kept = sidecars.left(attempt, now) if not attempt.ending else None
    if cause and kept == NOW:
        cause = _with(cause, sidecars.message_about(attempt))
    stopping = _stopping(job, history, cause, withdrawn, now)
    if stopping and record.cause is None and _only_deleted(attempt, cause):
        cause = stopping
    history = history.update(replace(record, cause=cause or stopping))
    if _over(attempt, now) or (kept == NOW and attempt.ended):
        if not cause and not succeeded(attempt) and (wait := _settling(attempt, now)):
            return _working(history, attempt, again=wait)
        return _close(job, history, attempt, now)
    again = _look_again(attempt, now)
    if stopping:
        why = f"{stopping.message}{_orphans(job, attempt)}"
        message = f"stopping attempt {record.number} after it has saved a checkpoint: {why}"
        return Verdict(Phase.STOPPING, stopping.reason, message, history, stop=True, again=again)
    if cause and cause.reason in GIVEN_UP:
        message = f"attempt {record.number} is given up: {cause.message}"
        return Verdict(Phase.RESTARTING, cause.reason, message, history, stop=True, again=again)
    decided = any(one.state in (observe.JobState.ENDING, observe.JobState.FAILED) for one in attempt.jobs)
    unseen = attempt.missing > 0 and any(one.decided for one in attempt.jobs)
    stop = unseen or (bool(cause) and (decided or (kept == NOW and record.cause == cause)))
    again = soonest(again, None if cause else patience, deadline_left(job, history, now), None if stop else kept)
    if cause and (history.running or record.cause) and (lost := _lost(attempt, cause)):
        message = f"{describe(history.records[-1])}; the next attempt waits {lost}"
        return Verdict(Phase.RESTARTING, cause.reason, message, history, stop=stop, again=again)
    return replace(_working(history, attempt, again), stop=stop)


def _orphans(job: TrainingJob, attempt: observe.Attempt) -> str:
    """Pods are stopped by deleting their Job; those that lost theirs, only a person may delete."""
    if attempt.jobs or not attempt.pods:
        return ""
    which = f"{names.LABEL_JOB}={job.name},{names.LABEL_ATTEMPT}={attempt.number}"
    return f"; its pods have lost their Job, so delete them: kubectl -n {job.namespace} delete pods -l {which}"


def _lost(attempt: observe.Attempt, cause: Cause) -> str:
    """For which pods a disrupted attempt waits of which none works any more: those of a lost node end for nobody."""
    left = [pod for pod in attempt.pods if not pod.end]
    if cause.outcome is not Outcome.DISRUPTED or any(pod.ready or not pod.deletion_due for pod in left) or not left:
        return ""
    latest = max(pod.deletion_due for pod in left if pod.deletion_due) + observe.OVERDUE
    return f"for {', '.join(pod.name for pod in left)} to end, until {write_time(latest)} at the latest"


def _working(history: History, attempt: observe.Attempt, again: timedelta | None) -> Verdict:
    """Once running, an attempt stays running until it has ended: pods that end or vanish do not make it start again.

    But where its Job was suspended, they start again when the Job goes on.
    """
    history = replace(history, running=not attempt.suspended and (history.running or attempt.at_work))
    number = attempt.number
    if history.running:
        return Verdict(Phase.RUNNING, Reason.PODS_READY, f"attempt {number} is at work", history, again=again)
    phase, reason, why = _resumption(history.records[-2] if len(history.records) > 1 else None)
    return Verdict(phase, reason, f"{why}attempt {number}: waiting for its pods", history, again=again)


def _stopping(
    job: TrainingJob, history: History, cause: Cause | None, withdrawn: tuple[str, str] | None, now: datetime
) -> Cause | None:
    """Why the attempt at work has to stop; once it was told to, a change of mind comes too late."""
    if cause and cause.outcome is Outcome.STOPPED:
        return cause
    if job.spec.suspend:
        return Cause(Outcome.STOPPED, Reason.SUSPENDED, "spec.suspend is true", time=now)
    if withdrawn:
        return Cause(Outcome.STOPPED, *withdrawn, time=now)
    if (left := deadline_left(job, history, now)) is not None and left <= NOW:
        return Cause(Outcome.STOPPED, Reason.DEADLINE_EXCEEDED, _deadline_message(job), time=now)
    return None


def _only_deleted(attempt: observe.Attempt, cause: Cause | None) -> bool:
    """Its pods went with their Job: where it is to stop, that was why, and the operator died before it wrote so."""
    deleting = any(job.deleting for job in attempt.jobs)
    return deleting and cause is not None and cause.reason in BY_HAND | UNEXPLAINED


def _torn(history: History, attempt: observe.Attempt, now: datetime) -> Cause | None:
    """The Job of one slice is gone while the others are at work: they cannot go on without it."""
    if not history.running or not attempt.jobs or attempt.whole:
        return None
    gone = attempt.jobs[0].slices - len(attempt.jobs)
    message = f"{gone} of {attempt.jobs[0].slices} Jobs of attempt {attempt.number} were deleted"
    return Cause(Outcome.DISRUPTED, Reason.JOB_DELETED, message, time=now)


def _patience(
    job: TrainingJob, record: Record, attempt: observe.Attempt, scheduler: GangScheduler, now: datetime
) -> timedelta | None:
    """How much longer the attempt may wait for room; an elastic one that can be smaller need not wait for a part."""
    if elastic.asked(job) and elastic.smaller(job, attempt) is not None:
        return elastic.patience_left(job, record, attempt, now)
    return scheduler.patience_left(attempt, job.uid, now)


def _crowded_out(attempt: observe.Attempt, record: Record, patience: timedelta | None, now: datetime) -> Cause | None:
    if patience is None or patience > NOW:
        return None
    placed = sum(pod.node is not None for pod in attempt.pods)
    if record.next_nodes:
        message = f"{placed} of {attempt.desired} pods found room; the next attempt has {record.next_nodes}"
        return Cause(Outcome.DISRUPTED, Reason.SHRUNK, message, time=now)
    message = f"only {placed} of {attempt.desired} pods found room; it is given back, and all are tried again later"
    return Cause(Outcome.DISRUPTED, Reason.GANG_INCOMPLETE, message, time=now)


def _over(attempt: observe.Attempt, now: datetime) -> bool:
    """Nothing of the attempt can write any more, and every Job of it is decided or gone."""
    decided = all(job.finished or job.deleting or job.state is observe.JobState.ENDING for job in attempt.jobs)
    settled = all(job.finished for job in attempt.jobs) and attempt.jobs and not _settling(attempt, now)
    return decided and (bool(settled) or not any(pod.alive(now) for pod in attempt.pods))


def _settling(attempt: observe.Attempt, now: datetime) -> timedelta | None:
    """How much longer the pods of ended Jobs may take to be seen ended."""
    ends = [job.ended for job in attempt.jobs if job.ended]
    left = max(ends) + SETTLE - now if ends else NOW
    if left > SETTLE + SKEW:  # by another clock than ours, which then says nothing
        return SETTLE if any(pod.alive(now) for pod in attempt.pods) else None
    return left if left > NOW else None


def _close(job: TrainingJob, history: History, attempt: observe.Attempt, now: datetime) -> Verdict:
    """Record the ended attempt, and only that: what follows is done when the record is known to be written."""
    record = history.last
    assert record
    if succeeded(attempt):
        cause = Cause(Outcome.SUCCEEDED, Reason.COMPLETED, sidecars.message_about(attempt))
    else:
        cause = record.cause or without_a_trace(attempt)
    ended = replace(record, end=_end_of(record, attempt, now), cause=cause, step=history.reached)
    after = _at_rest(job, _bounded(history.update(ended)), record.number, now)
    more = after.start or attempt.unfinished
    return replace(after, start=None, again=NOW if more else after.again)


def _with(cause: Cause, note: str) -> Cause:
    return cause if note in cause.message else replace(cause, message=f"{cause.message}; {note}")


def _end_of(record: Record, attempt: observe.Attempt, now: datetime) -> datetime:
    """When its Jobs ended, which nobody may have seen for long: what came later is no work of the attempt."""
    ends = [job.ended for job in attempt.jobs if job.ended]
    return max(record.start, min(now, max(ends))) if ends and len(ends) == len(attempt.jobs) else now


def _bounded(history: History) -> History:
    """The attempt that has just ended counts as failed when it is one too many that nobody explains."""
    record, row = history.records[-1], _unexplained(history.records)
    if row <= UNEXPLAINED_FREE or not record.cause:
        return history
    message = (
        f"{record.cause.message}; it is the end of {row} attempts in a row, none further than those before: it counts"
    )
    return history.update(replace(record, cause=replace(record.cause, outcome=Outcome.FAILED, message=message)))


def _unexplained(records: Sequence[Record]) -> int:
    """How many of the newest attempts ended for no reason that is known, without having come further than before."""
    for row, record in enumerate(reversed(records)):
        reached = max((one.step or 0 for one in records[: len(records) - row - 1]), default=0)
        explained = not record.end or not record.cause or record.cause.reason not in UNEXPLAINED
        if explained or (record.step or 0) > reached:
            return row
    return len(records)


def _look_again(attempt: observe.Attempt, now: datetime) -> timedelta | None:
    """When a terminating pod is given up, or the pods of an ended Job."""
    overdue = [pod.deletion_due + observe.OVERDUE - now for pod in attempt.pods if pod.deletion_due and not pod.end]
    return soonest(_settling(attempt, now), *(left for left in overdue if left > NOW))


# Between attempts, and after the last


def _at_rest(job: TrainingJob, history: History, number: int, now: datetime) -> Verdict:
    """What follows when no attempt is at work; ``number`` is the highest one ever used."""
    last = history.last
    if last and last.outcome is Outcome.SUCCEEDED:
        if not target_raised(job.spec, last):
            return Verdict(Phase.SUCCEEDED, Reason.COMPLETED, describe_success(last), history)
        history = history.renewed
    if last and (verdict := _given_up(job, history, last)):
        return verdict
    left = deadline_left(job, history, now)
    if left is not None and left <= NOW and not (job.spec.suspend and _was_suspended(last)):
        return Verdict(Phase.FAILED, Reason.DEADLINE_EXCEEDED, _deadline_message(job), history)
    if job.spec.suspend:
        return Verdict(Phase.SUSPENDED, Reason.SUSPENDED, "spec.suspend is true", replace(history, started=None))
    phase, reason, why = _resumption(last)
    if wait := _backoff(job, history, now):
        message = f"{why}attempt {number + 1} starts at {write_time(now + wait)}"
        return Verdict(phase, reason, message, history, again=soonest(wait, left))
    return Verdict(phase, reason, f"{why}attempt {number + 1} starts", history, start=number + 1)


def _was_suspended(last: Record | None) -> bool:
    return bool(last and last.cause and last.cause.reason == Reason.SUSPENDED)


def _begin(job: TrainingJob, verdict: Verdict, number: int, now: datetime) -> Verdict:
    history = verdict.history
    nodes = elastic.next_size(job, history) if elastic.asked(job) else None
    history = history.begin(replace(record_of(job.spec.training_arguments, number, now), nodes=nodes))
    again = soonest(APPEAR, deadline_left(job, history, now))
    return replace(_working(history, observe.Attempt(number), again), start=number)


def _given_up(job: TrainingJob, history: History, last: Record) -> Verdict | None:
    cause, limit = last.cause, job.spec.max_restarts
    if last.outcome is not Outcome.FAILED or not cause:
        return None
    if cause.permanent:
        return Verdict(Phase.FAILED, cause.reason, f"{_who(last)}: {cause.message}", history)
    if history.counted < limit:
        return None
    tries = "no restart is allowed" if limit == 0 else f"{limit} restart{'s' * (limit > 1)} used"
    return Verdict(Phase.FAILED, Reason.TOO_MANY_RESTARTS, f"{tries} (maxRestarts); {describe(last)}", history)


def _resumption(last: Record | None) -> tuple[Phase, str, str]:
    """How the time after an ended attempt is called, and the message about it that begin a message."""
    if last is None or last.outcome is None:
        return Phase.STARTING, Reason.PODS_STARTING, ""
    if last.outcome is Outcome.SUCCEEDED:
        return Phase.STARTING, Reason.TARGET_RAISED, "trained as far as it was asked, the target was raised; "
    if last.outcome is Outcome.STOPPED:
        return Phase.STARTING, Reason.RESUMED, "resumed; "
    if last.next_nodes:
        return Phase.STARTING, last.cause.reason if last.cause else Reason.SHRUNK, f"{describe(last)}; "
    failed = last.outcome is Outcome.FAILED
    return Phase.RESTARTING, Reason.ATTEMPT_FAILED if failed else Reason.ATTEMPT_DISRUPTED, f"{describe(last)}; "


def _backoff(job: TrainingJob, history: History, now: datetime) -> timedelta | None:
    """The first restart in a row of quick ends, or of such as nobody explains, is immediate; the next waits 10 s, then
    20 s, ... up to 5 minutes.

    A gang that found room for a part waits from the first time on, and not as long as another one.
    """
    row, last = quick_failures(history), history.last
    if not row or not last or not last.end or not last.cause:
        return None
    crowded = last.cause.reason == Reason.GANG_INCOMPLETE
    if row == 1 and not crowded:
        return None
    delay = timedelta(seconds=backoff_seconds(max(row, 2)))
    delay *= 0.5 + jitter(job.uid, last.number) if crowded else 1
    left = min(last.end + delay - now, delay)  # the end may be by the clock of another replica
    return left if left > NOW else None


def quick_failures(history: History) -> int:
    """How many of the newest attempts and rounds in a row ended badly and soon, or such as nobody explains."""
    ended = [record for record in history.records if record.end]
    row, unexplained = 0, _unexplained(ended)
    for number, record in enumerate(reversed(ended)):
        if record.outcome not in (Outcome.FAILED, Outcome.DISRUPTED) or record.next_nodes:
            return row
        for begin, end in record.spans():
            if end - begin >= HEALTHY and number >= unexplained:
                return row
            row += 1
    return row


def budget(job: TrainingJob, history: History) -> Budget:
    """What the launchers of the attempt that ``history`` has just opened may do by themselves."""
    return Budget(max(0, job.spec.max_restarts - history.counted), quick_failures(history))


def deadline_left(job: TrainingJob, history: History, now: datetime) -> timedelta | None:
    limit = job.spec.active_deadline_seconds
    return history.started + timedelta(seconds=limit) - now if limit is not None and history.started else None


def _deadline_message(job: TrainingJob) -> str:
    return f"activeDeadlineSeconds ({job.spec.active_deadline_seconds}) is over; raise it to go on"


def describe_success(last: Record) -> str:
    done = f"trained to step {last.step}" if last.step is not None else "training is complete"
    return f"{done}; {last.cause.message}" if last.cause and last.cause.message else done


def _who(last: Record) -> str:
    return last.cause.pod if last.cause and last.cause.pod else f"attempt {last.number}"


def describe(last: Record) -> str:
    """``attempt 2 failed at step 140: gpt-0-2-1 on node-b: out of memory ...``"""
    cause = last.cause
    if cause is None:
        return f"attempt {last.number} is at work"
    verb = {Outcome.FAILED: "failed", Outcome.DISRUPTED: "was disrupted", Outcome.STOPPED: "was stopped"}
    step = f" at step {last.step}" if last.step is not None else ""
    pod = f"{cause.pod} on {cause.node}: " if cause.node else f"{cause.pod}: " if cause.pod else ""
    reason = "" if cause.reason in (Reason.ERROR, Reason.UNKNOWN) else f"{cause.reason}: "
    return f"attempt {last.number} {verb.get(cause.outcome, 'ended')}{step}: {pod}{reason}{cause.message}"


def describe_round(record: Record, one: Round) -> str:
    """``attempt 2: round 1 ended at step 140: gpt-0-2-1 on node-b: rank 3 was killed ...; ...``"""
    step = f" at step {one.step}" if one.step is not None else ""
    pod = f"{one.pod} on {one.node}: " if one.node else f"{one.pod}: " if one.pod else ""
    reason = f"{one.reason}: " if one.reason == Reason.HANG else ""
    message = one.message or f"exit code {one.exit_code}"
    again = f"its ranks start again in the same pods, as round {one.number + 1}"
    return f"attempt {record.number}: round {one.number} ended{step}: {pod}{reason}{message}; {again}"


def soonest(*times: timedelta | None) -> timedelta | None:
    return min((max(time, NOW) for time in times if time is not None), default=None)
