"""How the pods of an attempt start together: the interface behind which each scheduler or queue has a file of its own.

A :class:`GangScheduler` says which jobs it takes, what it needs in the cluster to make the pods of an attempt one
gang, whether an attempt has to wait for it, and when a gang of which only a part runs is given up. The plan asks it and
knows no scheduler by name.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.observe import Attempt, Observed, Pod
from trainwright_operator.core.waiting import Hold

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """The kind of object by which a scheduler knows a gang; a cluster that serves it has the scheduler."""

    kind: str
    plural: str
    versions: tuple[str, ...]
    """``group/version`` of each version that has the shape written here, the newest first."""

    @property
    def group(self) -> str:
        """By which schedulers are told apart that have a kind of the same name."""
        return self.versions[0].partition("/")[0]


@dataclass(frozen=True)
class Gang:
    """The pods of one attempt, over all of its slices."""

    job: TrainingJob
    pods: int
    least: int
    """How many of them have to find room before any starts: all, but of an elastic job the smallest size."""
    metadata: Object
    """For an object that the attempt has one of: name, namespace, labels and owner."""


@dataclass(frozen=True)
class Membership:
    """What makes pods members of a gang."""

    objects: tuple[Object, ...] = ()
    """Created before the Jobs and deleted with them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    pod_spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every pod's spec."""


@dataclass(frozen=True)
class GangScheduler(ABC):
    """One way to start gangs, as this cluster has it."""

    KIND: ClassVar[Kind | None] = None

    version: str | None = None
    """The version of ``KIND`` that this cluster serves."""
    timeout: timedelta = timedelta(minutes=5)
    """How long a gang of which only a part found room may wait for the rest."""

    @abstractmethod
    def takes(self, job: TrainingJob, scheduler: str) -> bool:
        """Whether it starts the gangs of this job, whose pods name ``scheduler``; empty for the cluster's default."""

    @abstractmethod
    def membership(self, gang: Gang) -> Membership:
        """What makes the pods of an attempt a gang; nothing where the gang is a single pod that needs no help."""

    @classmethod
    def group_of(cls, template: Mapping[str, Any]) -> str | None:
        """The name of the object of ``KIND`` that pods of this template belong to; the inverse of ``membership``."""
        return None

    def hold(self, job: TrainingJob, observed: Observed, now: datetime) -> Hold | None:
        """Why the next attempt may not start yet. Its gang's ``objects`` are created all the same, to be waited for."""
        return None

    def patience_left(self, attempt: Attempt, uid: str, now: datetime) -> timedelta | None:
        """How much longer a partly placed attempt may wait for its other pods; None when it is not partly placed.

        It is counted anew from every pod that finds room: a gang that fills up, as a cluster grows, is not given up.
        It depends on the job's identity, so that two gangs that hold each other's room do not both give way.
        """
        placed = [pod for pod in attempt.pods if pod.node]
        if not placed or not (len(attempt.pods) < attempt.desired or any(map(_has_no_room, attempt.pods))):
            return None
        times = [time for pod in placed if (time := pod.scheduled or pod.created)]
        since = max(times, default=None)
        return since + self.timeout * (1 + jitter(uid, attempt.number) / 2) - now if since else None


def _has_no_room(pod: Pod) -> bool:
    return pod.node is None and pod.end is None and pod.wait is not None and pod.wait.reason == "Unschedulable"


def jitter(uid: str, attempt: int) -> float:
    """From 0 to 1, the same for the same attempt: a plan that is made again is the same plan."""
    return int.from_bytes(hashlib.sha256(f"{uid}/{attempt}".encode()).digest()[:4]) / 2**32
