"""The stores of all watched resources, and which TrainingJobs a change affects."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from trainwright_operator.api.names import LABEL_JOB, LABEL_MANAGED_BY, MANAGED_BY
from trainwright_operator.api.spec import AcceleratorPool, SpecError, parse_pool
from trainwright_operator.cluster.cache import ObjectKey, Store, key_of
from trainwright_operator.cluster.client import Object, Resource
from trainwright_operator.cluster.resources import JOBS, PODS, POOLS, SERVICES, TRAINING_JOBS

SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
WATCHED: dict[Resource, str] = {TRAINING_JOBS: "", POOLS: "", JOBS: SELECTOR, PODS: SELECTOR, SERVICES: SELECTOR}
"""The watched resources, each with its label selector."""


def owner_of(obj: Object) -> ObjectKey | None:
    """The TrainingJob of a child, by its label."""
    name = (obj["metadata"].get("labels") or {}).get(LABEL_JOB)
    return (obj["metadata"].get("namespace", ""), name) if name else None


class Stores:
    """A store for each watched resource; children are indexed by TrainingJob."""

    def __init__(self) -> None:
        self.training_jobs = Store()
        self.pools = Store()
        self.jobs = Store(group_by=owner_of)
        self.pods = Store(group_by=owner_of)
        self.services = Store(group_by=owner_of)
        self._parsed_pools: dict[str, AcceleratorPool] | None = None
        self._of = {
            TRAINING_JOBS: self.training_jobs,
            POOLS: self.pools,
            JOBS: self.jobs,
            PODS: self.pods,
            SERVICES: self.services,
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

    def _concerned(self, resource: Resource, objects: Iterable[Object]) -> list[ObjectKey]:
        if resource is TRAINING_JOBS:
            return [key_of(obj) for obj in objects]
        if resource is POOLS:
            self._parsed_pools = None
            return [key_of(job) for job in self.training_jobs if waits_for_attempt(job)] if list(objects) else []
        return [key for key in map(owner_of, objects) if key is not None]


def waits_for_attempt(job: Object) -> bool:
    """Whether a change of its pool affects the job; not if an attempt is running or the job has finished.

    A status of an older generation is ignored.
    """
    status = job.get("status") or {}
    current = status.get("observedGeneration") == job["metadata"].get("generation")
    return not current or status.get("state") not in ("Running", "Starting", "Succeeded", "Failed")
