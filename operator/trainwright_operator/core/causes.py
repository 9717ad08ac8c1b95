"""Why an attempt ended: one cause out of its pods.

When one pod goes, the Job controller takes its peers down, and they report whatever that looks like from inside. So the
cause is the pod that went *first*, with two exceptions that no order of arrival can fake: a disruption marked by the
cluster, and an exit code that says the job itself is wrong.

Nobody may have looked when it happened. A pod that fails by itself stays with its failed Job, and the last word of a
pod says whether it was asked to end, and by whom. So pods that are not there any more were taken away, and one that
only followed another is no witness of why.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice

from trainwright.contract import PERMANENT, EndedBy, ExitCode
from trainwright_operator.api.names import Reason
from trainwright_operator.core.display import plain
from trainwright_operator.core.history import Cause, Outcome
from trainwright_operator.core.observe import Attempt, End, JobState, Pod

GIVEN_UP = frozenset({Reason.GANG_INCOMPLETE, Reason.SHRUNK, Reason.ATTEMPT_INCOMPLETE, Reason.JOB_DELETED})
"""Why an attempt is stopped whose pods would else wait for those that never come; what these say of it is no cause."""
FOLLOWED = frozenset({Reason.PEER_STOPPED, Reason.PEER_LOST, Reason.PODS_GONE})
"""What a pod ends by whose peer went first: any other pod that tells more is believed before it."""
UNEXPLAINED = frozenset(
    {Reason.UNEXPLAINED_STOP, Reason.PEER_STOPPED, Reason.PODS_GONE, Reason.CONTAINER_LOST, Reason.JOB_DELETED}
)
"""Disruptions that nothing which is left in the cluster vouches for: a failure may hide behind them."""
BY_HAND = frozenset({Reason.PREEMPTED, Reason.POD_DELETED})
"""Disruptions that the cluster did not mark, but that somebody asked for by deleting the pods."""
EVICTED = "Evicted"
_LOST_CONTAINERS = frozenset({"ContainerStatusUnknown", "Unknown"})
"""What the kubelet and containerd call a container that was not there any more when the node came back."""
_SAYS_LOST = re.compile(r"connection (was likely )?(closed|reset)( by peer)?|broken pipe|node 0 is gone", re.IGNORECASE)
_NEVER = datetime.max.replace(tzinfo=UTC)
_MARKED, _PERMANENT, _FIRST = range(3)


def succeeded(attempt: Attempt) -> bool:
    """Every Job is complete; of Jobs that are going or gone the pods may tell, when all of them are still there."""
    if attempt.whole and all(job.state is JobState.COMPLETE for job in attempt.jobs):
        return True
    codes = [pod.end.exit_code if pod.end else None for pod in attempt.pods]
    everyone = attempt.whole or not attempt.jobs
    return everyone and bool(codes) and not attempt.missing and all(code == ExitCode.DONE for code in codes)


def cause_of(attempt: Attempt, known: Cause | None = None) -> Cause | None:
    """The cause as far as the pods tell it; ``known`` is what was recorded before, of pods that may be gone by now."""
    if known and (known.outcome is Outcome.STOPPED or known.reason in GIVEN_UP):
        return known
    gang = _Gang.of(attempt)
    of_pods = [cause for pod in attempt.pods if (cause := _of_pod(pod, gang, known))]
    found = [*_of_jobs(attempt), *of_pods]
    if known and _still_holds(known, next((cause for cause in of_pods if cause.pod == known.pod), None)):
        found.insert(0, known)
    first = min(found, key=_key, default=None)
    if first and known and replace(first, message=known.message) == known and known.message.startswith(first.message):
        return known  # with what was added to it
    return _unseen(first, attempt.missing, attempt.desired) if first and first.reason in FOLLOWED else first


@dataclass(frozen=True)
class _Gang:
    """What the judgement of one pod takes from the others, looked up once for all of them."""

    missing: int
    decided: datetime
    """When a Job of the attempt began to take its pods down."""
    going: frozenset[int]
    """The slices whose Job is being deleted."""
    first: tuple[str, ...]
    """The names of two pods that ended by no other's doing; more are no more to anybody."""

    @staticmethod
    def of(attempt: Attempt) -> _Gang:
        decided = min((job.decided for job in attempt.jobs if job.decided), default=_NEVER)
        going = frozenset(job.slice for job in attempt.jobs if job.deleting)
        first = islice((pod.name for pod in attempt.pods if _went_first(pod)), 2)
        return _Gang(attempt.missing, decided, going, tuple(first))

    def leads(self, pod: Pod) -> bool:
        """Whether the pod was deleted, or its Job was, because of another: one that went first, or is not there."""
        went_first = any(name != pod.name for name in self.first)
        taken_down = pod.deletion_requested is not None and pod.deletion_requested >= self.decided
        return (taken_down and (self.missing > 0 or went_first)) or (went_first and pod.slice in self.going)


def _still_holds(known: Cause, now: Cause | None) -> bool:
    """What was seen to be taken away stays so, whoever else is gone by now; for the rest a pod tells best itself."""
    return now is None or (_disrupted(known) and known.reason not in UNEXPLAINED and _disrupted(now))


def _unseen(witness: Cause, missing: int, desired: int) -> Cause:
    """Of a pod that followed one which is not there to tell why, whatever that looks like to the one that is."""
    if not missing or witness.reason == Reason.PODS_GONE:
        return witness
    message = f"{witness.message}; {missing} of {desired} pods {'is' if missing == 1 else 'are'} not there to tell why"
    return replace(witness, outcome=Outcome.DISRUPTED, reason=Reason.PODS_GONE, message=message)


def without_a_trace(attempt: Attempt) -> Cause:
    """Of an ended attempt whose pods tell nothing."""
    failed = next((job for job in attempt.jobs if job.finished), None)
    if failed is None:
        return Cause(Outcome.DISRUPTED, Reason.JOB_DELETED, f"the Job of attempt {attempt.number} was deleted")
    if not attempt.missing:
        return Cause(Outcome.FAILED, Reason.UNKNOWN, f"Job {failed.name} failed, and its pods do not tell why")
    gone = "its pods were" if attempt.missing == attempt.desired else f"{attempt.missing} of its pods were"
    message = f"the Job failed, and {gone} taken away before their end could be seen"
    return Cause(Outcome.DISRUPTED, Reason.PODS_GONE, message)


def _of_jobs(attempt: Attempt) -> Iterator[Cause]:
    """A limit on the Job that the operator never sets takes healthy pods down: no disruption, for it comes again."""
    for job in attempt.jobs:
        if job.failure == Reason.DEADLINE_EXCEEDED:
            message = f"Job {job.name} has an activeDeadlineSeconds that this operator did not set; see who sets it"
            yield Cause(Outcome.FAILED, Reason.JOB_DEADLINE, message, time=job.decided)


def _of_pod(pod: Pod, gang: _Gang, known: Cause | None) -> Cause | None:
    end = pod.end
    if end and end.exit_code == ExitCode.DONE:
        return None
    if pod.excess:
        message = f"{pod.excess.strip().rstrip('.')}; raise that limit, or write less to the pod's own disk"
        return _cause(pod, Outcome.FAILED, EVICTED, message, end.time if end else None)
    by_itself = end is not None and (_failed_by_itself(end) or _known_failed(pod, known))
    if pod.disruption and not by_itself:
        time = pod.deletion_requested or (end.time if end else None)
        return _cause(pod, Outcome.DISRUPTED, pod.disruption.reason, pod.disruption.message, time)
    asked = None if by_itself or (end and end.exit_code in PERMANENT) else pod.deletion_requested
    if asked and gang.leads(pod):
        message = _message_or(end, "it was stopped after a peer")
        return _cause(pod, Outcome.DISRUPTED, Reason.PEER_STOPPED, message, asked)
    if end:
        return _of_end(pod, end, asked)
    return _cause(pod, Outcome.DISRUPTED, Reason.POD_DELETED, "the pod was deleted", asked) if asked else None


def _failed_by_itself(end: End) -> bool:
    """It says so itself, or tells the failure of a peer; a deletion or a mark of later does not change that."""
    by, word = _ended_by(end), end.word
    of_peer = by == EndedBy.PEER and bool(word and (word.error or end.exit_code != ExitCode.PREEMPTED))
    return by == EndedBy.SCRIPT or of_peer


def _known_failed(pod: Pod, known: Cause | None) -> bool:
    """Its end was seen before: what became of the pod afterwards, when its node was drained, was not why."""
    return known is not None and known.pod == pod.name and known.exit_code is not None and not _disrupted(known)


def _went_first(pod: Pod) -> bool:
    if pod.end is None or pod.end.exit_code == ExitCode.DONE:
        return False
    undeleted = not pod.disruption and not pod.deletion_requested
    return _failed_by_itself(pod.end) or (undeleted and _ended_by(pod.end) not in (EndedBy.PEER, EndedBy.LOST))


def _of_end(pod: Pod, end: End, asked: datetime | None) -> Cause:
    message, by = explain(end), _ended_by(end)
    outcome, reason = Outcome.DISRUPTED, Reason.POD_DELETED
    if end.exit_code in PERMANENT or _failed_by_itself(end):
        outcome, reason = Outcome.FAILED, _reason(end)
    elif asked:
        reason = Reason.PREEMPTED if end.exit_code == ExitCode.PREEMPTED else Reason.POD_DELETED
    elif end.exit_code == ExitCode.PREEMPTED:
        reason, default = _unasked(pod, by)
        message = _message_or(end, default)
    elif by == EndedBy.LOST:
        outcome, reason = Outcome.FAILED, Reason.PEER_LOST
    elif end.reason in _LOST_CONTAINERS:
        reason, message = Reason.CONTAINER_LOST, f"the node lost the container, as when it restarts ({message})"
    else:
        outcome, reason = Outcome.FAILED, _reason(end)
    return _cause(pod, outcome, reason, message, asked or end.time)


UNASKED = "stopped on request, though nothing in the cluster tells of one"


def _unasked(pod: Pod, by: str | None) -> tuple[str, str]:
    """Reason and message of a pod that was asked to stop, without a deletion or a mark of its own."""
    if by == EndedBy.PEER:
        return Reason.PEER_STOPPED, "it was stopped after a peer"
    if pod.leaving and pod.leaving.takes_pods:
        return Reason.NODE_LEAVING, "stopped on request"
    return Reason.UNEXPLAINED_STOP, UNASKED


def _message_or(end: End | None, default: str) -> str:
    """What the pod says, or ``default`` where it says nothing of its own."""
    return explain(end) if end and (end.exit_code != ExitCode.PREEMPTED or (end.word and end.word.error)) else default


def _ended_by(end: End) -> str | None:
    """Of an image older than the word, only what its error tells; what is no word of ours says nothing."""
    by, error = (end.word.ended_by, end.word.error) if end.word else (None, None)
    if isinstance(by, str) and by in set(EndedBy):
        return by
    return EndedBy.LOST if _SAYS_LOST.search(error or "") else None


def _cause(pod: Pod, outcome: Outcome, reason: str, message: str, time: datetime | None) -> Cause:
    if pod.leaving and outcome is Outcome.DISRUPTED and reason not in FOLLOWED:
        message = f"{message}; node {pod.node} {pod.leaving.words}"
    return Cause(outcome, reason, message, pod.name, pod.node, pod.end.exit_code if pod.end else None, time)


def _key(cause: Cause) -> tuple[int, bool, datetime, int, bool]:
    """Marked disruptions, then permanent codes, then whoever went first and did not follow another.

    The kubelet's clock counts whole seconds. Within one of them a failure goes before an end that nobody explains, that
    before a deletion, which it may have caused, and a process that was killed before the peers that missed it.
    """
    by_hand, unexplained = cause.reason in BY_HAND, cause.reason in UNEXPLAINED | FOLLOWED
    marked = _disrupted(cause) and not by_hand and not unexplained
    rank = _MARKED if marked else _PERMANENT if cause.permanent else _FIRST
    order = 2 if by_hand else int(_disrupted(cause))
    killed = (cause.exit_code or 0) > 128
    return rank, cause.reason in FOLLOWED, cause.time or _NEVER, order, not killed


def _disrupted(cause: Cause) -> bool:
    return cause.outcome is Outcome.DISRUPTED


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
