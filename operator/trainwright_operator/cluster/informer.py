"""The stores of all watched resources, and which TrainingJobs a change affects."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from trainwright_operator.api.names import LABEL_JOB, LABEL_MANAGED_BY, LABEL_PROBE, MANAGED_BY
from trainwright_operator.api.spec import AcceleratorPool, SpecError, parse_pool
from trainwright_operator.cluster.cache import ObjectKey, Store, key_of, slim_pod
from trainwright_operator.cluster.client import Object, Resource
from trainwright_operator.cluster.resources import (
    FLAVORS,
    JOBS,
    POD_PRIORITIES,
    PODS,
    POOLS,
    QUEUE_PRIORITIES,
    QUEUED,
    SERVICES,
    TRAINING_JOBS,
    WORKLOADS,
)
from trainwright_operator.core.queues import kueue
from trainwright_operator.core.queues.workload import Flavor, flavors_of, priorities_of

SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
_OURS = frozenset({JOBS, PODS, SERVICES, WORKLOADS})


def watched(queues: bool = False) -> dict[Resource, str]:
    """The watched resources, each with its label selector; ``queues`` adds those of Kueue."""
    resources = (TRAINING_JOBS, POOLS, JOBS, PODS, SERVICES, *(QUEUED if queues else ()))
    return {resource: SELECTOR if resource in _OURS else "" for resource in resources}


def owner_of(obj: Object) -> ObjectKey | None:
    """The TrainingJob of a child, by its label."""
    labels = obj["metadata"].get("labels") or {}
    name = labels.get(LABEL_JOB) or labels.get(LABEL_PROBE)
    return (obj["metadata"].get("namespace", ""), name) if name else None


class Stores:
    """A store for each watched resource; children are indexed by TrainingJob."""

    def __init__(self) -> None:
        self.training_jobs = Store()
        self.pools = Store()
        self.jobs = Store(group_by=owner_of)
        self.pods = Store(group_by=owner_of, slim=slim_pod)
        self.services = Store(group_by=owner_of)
        self.workloads = Store(group_by=owner_of)
        self._flavors, self._queue_priorities, self._pod_priorities = Store(), Store(), Store()
        self._parsed_pools: dict[str, AcceleratorPool] | None = None
        self._parsed_flavors: dict[str, Flavor] | None = None
        self._parsed_priorities: dict[str, int] | None = None
        self._of = {
            TRAINING_JOBS: self.training_jobs,
            POOLS: self.pools,
            JOBS: self.jobs,
            PODS: self.pods,
            SERVICES: self.services,
            WORKLOADS: self.workloads,
            FLAVORS: self._flavors,
            QUEUE_PRIORITIES: self._queue_priorities,
            POD_PRIORITIES: self._pod_priorities,
        }

    def take(self, resource: Resource, obj: Object, deleted: bool = False) -> list[ObjectKey]:
        """Store a change; returns the TrainingJobs that it may affect, none if it is already known."""
        store = self._of[resource]
        changed = store.remove(obj) if deleted else store.put(obj)
        return self._concerned(resource, [obj]) if changed else []

    def replace(self, resource: Resource, objects: list[Object], version: int) -> list[ObjectKey]:
        """Store a full list; returns the TrainingJobs that it may affect."""
        return self._concerned(resource, self._of[resource].replace(objects, version))

    def about(self, key: ObjectKey) -> dict[str, int]:
        """The fields of a log line about a job: its generation, and the current attempt."""
        job = self.training_jobs.get(key)
        if job is None:
            return {}
        attempts = (job.get("status") or {}).get("attempts") or [{"attempt": 0}]
        return {"generation": job["metadata"].get("generation", 0), "attempt": attempts[-1]["attempt"]}

    def accelerator_pools(self) -> dict[str, AcceleratorPool]:
        """The valid pools; one that an older CRD accepted and this release rejects counts as missing."""
        if self._parsed_pools is None:
            self._parsed_pools = {}
            for pool in self.pools:
                with suppress(SpecError):
                    self._parsed_pools[pool["metadata"]["name"]] = parse_pool(pool)
        return self._parsed_pools

    def flavors(self) -> dict[str, Flavor]:
        """Every ResourceFlavor by name."""
        if self._parsed_flavors is None:
            self._parsed_flavors = flavors_of(self._flavors)
        return self._parsed_flavors

    def priorities(self) -> dict[str, int]:
        """The value of each WorkloadPriorityClass by name, and of each PriorityClass by ``pod/<name>``."""
        if self._parsed_priorities is None:
            of_pods = {f"pod/{name}": value for name, value in priorities_of(self._pod_priorities).items()}
            self._parsed_priorities = {**priorities_of(self._queue_priorities), **of_pods}
        return self._parsed_priorities

    def _concerned(self, resource: Resource, objects: Iterable[Object]) -> list[ObjectKey]:
        if resource is TRAINING_JOBS:
            return [key_of(obj) for obj in objects]
        if resource is POOLS:
            self._parsed_pools = None
            return [key_of(job) for job in self.training_jobs if waits_for_attempt(job)] if list(objects) else []
        if resource in (FLAVORS, QUEUE_PRIORITIES, POD_PRIORITIES):
            self._parsed_flavors = self._parsed_priorities = None
            queued = [one for one in self.training_jobs if kueue.LABEL_QUEUE in (one["metadata"].get("labels") or {})]
            return [key_of(job) for job in queued if waits_for_attempt(job)] if list(objects) else []
        return [key for key in map(owner_of, objects) if key is not None]


def waits_for_attempt(job: Object) -> bool:
    """Whether a change of its pool affects the job; not if an attempt is running or the job has finished.

    A status of an older generation is ignored.
    """
    status = job.get("status") or {}
    current = status.get("observedGeneration") == job["metadata"].get("generation")
    return not current or status.get("state") not in ("Running", "Starting", "Succeeded", "Failed")
