"""Which children to delete: Jobs that must stop, those of attempts long ended, and all when a time to live is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from trainwright_operator.api import names
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.children import beside, service_name
from trainwright_operator.core.history import History
from trainwright_operator.core.observe import Attempt, Observed
from trainwright_operator.core.policy import FINISHED, Verdict
from trainwright_operator.core.times import read_time

KEPT_ATTEMPTS = 3
"""How many ended attempts keep their Jobs, for the logs of their pods."""


@dataclass(frozen=True)
class Delete:
    """One object to delete; ``Foreground`` keeps a Job visible until its pods have ended."""

    api_version: str
    kind: str
    name: str
    propagation: str = "Background"


def leftovers(observed: Observed, verdict: Verdict, before: History) -> Iterator[Delete]:
    """Jobs that must stop, with time to save, and everything of attempts older than the last few.

    ``before`` is the history as it was read: an attempt that has just ended keeps its Jobs until its end is known to
    be written, because nothing else may tell of it.
    """
    current = verdict.history.open.number if verdict.history.open else None
    was_open = before.open.number if before.open else None
    ended = [attempt for attempt in observed.attempts if attempt.number != current]
    for attempt in observed.attempts:
        if attempt.number not in (current, was_open) or verdict.stop:
            yield from stop_jobs(attempt)
    for attempt in ended[:-KEPT_ATTEMPTS]:
        yield from _all_of(attempt)


def stop_jobs(*attempts: Attempt) -> Iterator[Delete]:
    """Deleting a Job stops its pods, which save a checkpoint within their grace."""
    for attempt in attempts:
        yield from (Delete("batch/v1", "Job", job.name, "Foreground") for job in attempt.unfinished)


def _all_of(attempt: Attempt) -> Iterator[Delete]:
    """The ended Jobs of an attempt, and what it has one of beside them."""
    for job in attempt.jobs:
        if not job.deleting and job not in attempt.unfinished:
            yield Delete("batch/v1", "Job", job.name)
    for api_version, kind, name in dict.fromkeys(each for job in attempt.jobs for each in beside(job.template)):
        yield Delete(api_version, kind, name)


def expired(
    job: TrainingJob, observed: Observed, verdict: Verdict, now: datetime
) -> tuple[list[Delete], timedelta | None]:
    """What a finished job loses after ``ttlSecondsAfterFinished``: its children, or on request itself; or how long
    that is still to come.

    Nothing before its end is known to be written: without its children nothing else says that it was trained.
    """
    ttl = job.spec.ttl_seconds_after_finished
    if verdict.phase not in FINISHED or ttl is None:
        return [], None
    left = (read_time(job.status.get("completionTime")) or now) + timedelta(seconds=ttl) - now
    if "completionTime" not in job.status or left > timedelta(0):
        return [], left
    if job.spec.delete_after_finished:
        return [Delete(names.API_VERSION, names.JOB_KIND, job.name)], None
    children = [delete for attempt in observed.attempts for delete in _all_of(attempt)]
    several = (job.status.get("nodes") or {}).get("desired", 0) > 1
    service = [Delete("v1", "Service", service_name(job))] if children and several else []
    return [*service, *children], None
