"""What is known of the cluster, and which TrainingJob each change is about."""

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
"""The resources that are watched, each with the label selector that the API server applies."""


def owner_of(obj: Object) -> ObjectKey | None:
    """The TrainingJob that a child belongs to, by its label."""
    name = (obj["metadata"].get("labels") or {}).get(LABEL_JOB)
    return (obj["metadata"].get("namespace", ""), name) if name else None


class Stores:
    """One store for each watched resource; children are indexed by their TrainingJob."""

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
        """Take a change in; gives the TrainingJobs that it may concern, none when it was known already."""
        store = self._of[resource]
        changed = store.remove(obj) if deleted else store.put(obj)
        return self._concerned(resource, [obj]) if changed else []

    def replace(self, resource: Resource, objects: list[Object], version: int) -> list[ObjectKey]:
        """Take a full list in; gives the TrainingJobs that it may concern."""
        return self._concerned(resource, self._of[resource].replace(objects, version))

    def about(self, key: ObjectKey) -> dict[str, int]:
        """What a log line says of a job beside its name: its generation, and the attempt at work."""
        job = self.training_jobs.get(key)
        if job is None:
            return {}
        attempts = (job.get("status") or {}).get("attempts") or [{"attempt": 0}]
        return {"generation": job["metadata"].get("generation", 0), "attempt": attempts[-1]["attempt"]}

    def accelerator_pools(self) -> dict[str, AcceleratorPool]:
        """The pools that can be used; one that an older CRD let in and this release cannot read counts as missing."""
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
    """A pool counts from the next attempt: who is at work or finished has no use for its change.

    What a status says of a former spec tells nothing.
    """
    status = job.get("status") or {}
    current = status.get("observedGeneration") == job["metadata"].get("generation")
    return not current or status.get("state") not in ("Running", "Starting", "Succeeded", "Failed")
