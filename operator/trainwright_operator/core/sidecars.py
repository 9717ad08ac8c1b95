"""Containers that others put into the pods, as a service mesh does, and that do not end when the trainer has.

The trainer's end is its pod's end. A pod that is kept by somebody else's container never ends by itself, nor does its
Job, and the nodes are held for nothing. So the verdict is written once the trainers have ended, and the Job is then
deleted. A native sidecar (an init container that is always restarted) needs none of this: the kubelet ends it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from trainwright.contract import ExitCode
from trainwright_operator.core.observe import Attempt, Pod
from trainwright_operator.core.times import remaining

PATIENCE = timedelta(seconds=15)
"""What a sidecar gets to end by itself: some look at the trainer, some send off the last lines of its log."""


def kept(attempt: Attempt) -> list[Pod]:
    """Pods whose trainer has ended and that go on all the same."""
    return [pod for pod in attempt.pods if pod.kept_by and pod.end]


def left(attempt: Attempt, now: datetime) -> timedelta | None:
    """How much longer a kept pod that matters is waited for; None while there is none.

    Each one matters when all trainers have ended, and one that failed at once: its peers may wait for it.
    """
    pods = kept(attempt)
    if attempt.missing or not all(pod.end for pod in attempt.pods):
        pods = [pod for pod in pods if pod.end and pod.end.exit_code != ExitCode.DONE]
    ends = [pod.end.time for pod in pods if pod.end and pod.end.time]
    return remaining(max(ends), PATIENCE, now) if ends else None


def message_about(attempt: Attempt) -> str:
    """What is told beside why the attempt ended; empty where nobody keeps its pods."""
    names = sorted({name for pod in kept(attempt) for name in pod.kept_by})
    if not names:
        return ""
    went_on = f"container{'s' * (len(names) > 1)} {', '.join(names)} went on after the trainer had ended"
    return (
        f"{went_on}, so the pods were deleted, and their logs are where the cluster keeps those of deleted pods, if it "
        "does; leave such sidecars out of the pods, or make them native (docs/operator.md, Sidecars)"
    )
