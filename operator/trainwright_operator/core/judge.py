"""Why an attempt ended: one cause out of its pods.

When one pod goes, the Job controller takes its peers down, and they report whatever that looks like from inside. So the
cause is the pod that went *first*, with two exceptions that no order of arrival can fake: a disruption marked by the
cluster, and an exit code that says the job itself is wrong.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from datetime import UTC, datetime

from trainwright.contract import PERMANENT, ExitCode
from trainwright_operator.core.attempts import Cause, Outcome
from trainwright_operator.core.display import plain
from trainwright_operator.core.observe import Attempt, End, JobState, Pod
from trainwright_operator.names import Reason

GIVEN_UP = frozenset({Reason.GANG_INCOMPLETE, Reason.ATTEMPT_INCOMPLETE, Reason.JOB_DELETED})
"""Why an attempt is stopped whose pods would else wait for those that never come; what these say of it is no cause."""
BY_HAND = frozenset({Reason.PREEMPTED, Reason.POD_DELETED, Reason.JOB_DELETED})
"""Disruptions that the cluster did not mark: somebody deleted the pods, or their Job."""
_NEVER = datetime.max.replace(tzinfo=UTC)
_MARKED, _PERMANENT, _FIRST = range(3)


def succeeded(attempt: Attempt) -> bool:
    """Every Job is complete; of a Job that is being deleted its pods may tell, when all of them are still there."""
    if attempt.whole and all(job.state is JobState.COMPLETE for job in attempt.jobs):
        return True
    codes = [pod.end.exit_code if pod.end else None for pod in attempt.pods]
    return attempt.whole and len(codes) >= attempt.desired and all(code == ExitCode.DONE for code in codes)


def judge(attempt: Attempt, known: Cause | None = None) -> Cause | None:
    """The cause as far as the pods tell it; ``known`` is what was recorded before, of pods that may be gone by now."""
    if known and (known.outcome is Outcome.STOPPED or known.reason in GIVEN_UP):
        return known
    found = [(_key(cause), cause) for cause in _causes(attempt.pods)]
    if known:
        found.insert(0, (_key(known), known))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _causes(pods: Iterable[Pod]) -> Iterable[Cause]:
    for pod in pods:
        if pod.disruption:
            time = pod.deletion_requested or (pod.end.time if pod.end else None)
            yield _cause(pod, Outcome.DISRUPTED, pod.disruption.reason, pod.disruption.message, time)
        elif pod.end and pod.end.exit_code != ExitCode.DONE:
            yield _of_end(pod, pod.end)
        elif pod.deletion_requested and not pod.end:
            yield _cause(pod, Outcome.DISRUPTED, Reason.POD_DELETED, "the pod was deleted", pod.deletion_requested)


def _of_end(pod: Pod, end: End) -> Cause:
    message = explain(end)
    if end.exit_code in PERMANENT:
        return _cause(pod, Outcome.FAILED, _reason(end), message, end.time)
    if pod.deletion_requested or end.exit_code == ExitCode.PREEMPTED:
        reason = Reason.PREEMPTED if end.exit_code == ExitCode.PREEMPTED else Reason.POD_DELETED
        return _cause(pod, Outcome.DISRUPTED, reason, message, pod.deletion_requested or end.time)
    return _cause(pod, Outcome.FAILED, _reason(end), message, end.time)


def _cause(pod: Pod, outcome: Outcome, reason: str, message: str, time: datetime | None) -> Cause:
    return Cause(outcome, reason, message, pod.name, pod.node, pod.end.exit_code if pod.end else None, time)


def _key(cause: Cause) -> tuple[int, datetime, bool, bool]:
    """Marked disruptions, then permanent codes, then whoever went first.

    The kubelet's clock counts whole seconds. Within one of them a failure goes before a disruption, and a process that
    was killed before the peers that missed it.
    """
    disrupted = cause.outcome is Outcome.DISRUPTED
    rank = _MARKED if disrupted and cause.reason not in BY_HAND else _PERMANENT if cause.permanent else _FIRST
    killed = (cause.exit_code or 0) > 128
    return rank, cause.time or _NEVER, disrupted, not killed


def _reason(end: End) -> str:
    if end.reason == "OOMKilled":
        return end.reason
    codes = {
        ExitCode.BAD_CONFIGURATION: Reason.BAD_CONFIGURATION,
        ExitCode.BAD_DATA: Reason.BAD_DATA,
        ExitCode.MISMATCH: Reason.IMAGE_MISMATCH,
        ExitCode.HANG: Reason.HANG,
    }
    return next((reason for code, reason in codes.items() if end.exit_code == code), end.reason or Reason.ERROR)


def explain(end: End) -> str:
    """One line: the trainer's own word, or the last line of what the container left, or the bare exit code."""
    if end.reason == "OOMKilled":
        return "out of memory: raise podTemplate.resources.limits.memory, or lower perDeviceTrainBatchSize"
    said = end.word.error or "" if end.word else end.message
    lines = [line.strip() for line in map(plain, said.splitlines()) if line.strip()]
    if lines:
        return " ".join(lines) if end.word else lines[-1]
    if end.exit_code is None:
        return "the container never ran"
    if end.exit_code == ExitCode.PREEMPTED:
        return "stopped on request"
    return f"exit code {end.exit_code}{_signal(end.exit_code)}"


def _signal(exit_code: int) -> str:
    number = exit_code - 128
    return f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
