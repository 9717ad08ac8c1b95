"""Plans in place of one that cannot be made or carried out: they say in the status what is wrong, and when to retry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api.names import Reason
from trainwright_operator.api.spec import JobSpec, Output, TrainingJob
from trainwright_operator.core.events import events
from trainwright_operator.core.fixes import with_fixes
from trainwright_operator.core.goodput import Terms, accounted
from trainwright_operator.core.history import History, Outcome
from trainwright_operator.core.observe import Observed, observe
from trainwright_operator.core.plan import Plan, blocked, conflict, seconds
from trainwright_operator.core.policy import FINISHED, Phase, Verdict, adopt, decide, describe_success
from trainwright_operator.core.progress import merge_final_word
from trainwright_operator.core.status import render, with_obstacle
from trainwright_operator.core.times import read_time


def refused(job: TrainingJob, observed: Observed, now: datetime, reason: str, message: str, again: float) -> Plan:
    """The API server does not take a child of the plan: say why, and retry ``again`` seconds later."""
    history = adopt(job, History.of(job.status), observed, now)
    verdict = blocked(history, reason, with_fixes(message))
    return _status_only(job, replace(verdict, again=timedelta(seconds=again)), now)


def name_conflict(job: TrainingJob, observed: Observed, now: datetime, child: str, owner: str, again: float) -> Plan:
    """``child`` of the plan (``Service tj-gpt``) exists and belongs to ``owner`` (``CronJob/x``)."""
    verdict = conflict(job, adopt(job, History.of(job.status), observed, now), child, owner)
    return _status_only(job, replace(verdict, again=verdict.again or timedelta(seconds=again)), now)


def deletion_blocked(planned: Plan, why: list[str], again: float) -> Plan:
    """``planned`` was carried out but for some deletions: a job that waits for them says why, all else stays."""
    status = with_obstacle(planned.status, with_fixes("; ".join(why)))
    sooner = again if planned.requeue_after is None else min(again, planned.requeue_after)
    return replace(planned, status=status, requeue_after=sooner)


def unreadable(
    stored: Mapping[str, Any],
    problems: str,
    jobs: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    now: datetime,
) -> Plan:
    """For an object that an older CRD accepted and this release cannot read.

    An attempt at work is left alone until it has ended, none is started, and what is finished stays so.
    """
    meta, status = stored["metadata"], dict(stored.get("status") or {})
    if "deletionTimestamp" in meta or status.get("state") in FINISHED:
        return Plan(status=status)
    empty_spec = JobSpec(output=Output())
    job = TrainingJob(
        meta["name"], empty_spec, meta["namespace"], meta["uid"], meta.get("generation", 1), status=status
    )
    history = History.of(status)
    if history.open:
        observed = observe(job, jobs, pods)
        at_work = observed.attempt(history.open.number)
        final = merge_final_word(status, at_work) if at_work else status
        verdict = decide(job, History.of(final), observed, now.replace(microsecond=0))
        if verdict.history.open:
            return Plan(status=status, requeue_after=seconds(verdict.again))
        job, history = replace(job, status=final), verdict.history
    if history.last and history.last.outcome is Outcome.SUCCEEDED:
        done = Verdict(Phase.SUCCEEDED, Reason.COMPLETED, describe_success(history.last), history)
        return _status_only(job, done, now)
    return _status_only(job, blocked(history, Reason.INVALID_SPEC, problems), now)


def _status_only(job: TrainingJob, verdict: Verdict, now: datetime) -> Plan:
    now = now.replace(microsecond=0)
    status = render(job.status, job.generation, verdict, None, None, now)
    status = accounted(job.status, status, Terms(read_time(job.creation_timestamp)), now)
    return Plan(status=status, events=events(job.status, status), requeue_after=seconds(verdict.again))
