"""Pods that start together or not at all: one file a scheduler, and the table of those that are looked for."""

from __future__ import annotations

from dataclasses import dataclass

from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.gangs.gang import GangScheduler
from trainwright_operator.core.gangs.kai import Kai
from trainwright_operator.core.gangs.one_by_one import OneByOne
from trainwright_operator.core.gangs.podgroup import PodGroup
from trainwright_operator.core.gangs.volcano import Volcano

__all__ = ["ONE_BY_ONE", "SCHEDULERS", "GangScheduler", "Gangs", "Kai", "OneByOne", "PodGroup", "Volcano"]

SCHEDULERS: tuple[type[GangScheduler], ...] = (PodGroup, Volcano, Kai)
"""What a cluster may serve, in the order in which a job is offered to them."""


@dataclass(frozen=True)
class Gangs:
    """How one cluster starts gangs: the schedulers that it has, of which the first that takes a job starts it."""

    schedulers: tuple[GangScheduler, ...] = (OneByOne(),)
    """The last one takes every job."""

    def of(self, job: TrainingJob, pool: AcceleratorPool | None = None) -> GangScheduler:
        """``pool`` may name the scheduler of its nodes; a job goes before it."""
        named = job.spec.pod_template.scheduler_name or (pool.scheduler_name if pool else None) or ""
        return next(scheduler for scheduler in self.schedulers if scheduler.takes(job, named))


ONE_BY_ONE = Gangs()
