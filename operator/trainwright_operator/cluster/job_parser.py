"""Parses TrainingJobs; each spec is validated once, because reconciles are far more frequent than changes of a spec."""

from __future__ import annotations

from trainwright_operator.api.spec import JobSpec, TrainingJob, job_with_spec, parse_job
from trainwright_operator.cluster.cache import Object, ObjectKey, key_of


class JobParser:
    """Caches specs by uid and generation; the API server increments the generation when the spec changes."""

    def __init__(self) -> None:
        self._specs: dict[ObjectKey, tuple[str, int, JobSpec]] = {}

    def parse(self, stored: Object) -> TrainingJob:
        """The job of an object from the API server; raises :class:`SpecError` like ``parse_job``."""
        meta = stored["metadata"]
        uid, generation, spec = self._specs.get(key_of(stored), (None, None, None))
        if spec is not None and (uid, generation) == (meta.get("uid"), meta.get("generation")):
            return job_with_spec(stored, spec)
        job = parse_job(stored)
        self._specs[key_of(stored)] = job.uid, job.generation, job.spec
        return job

    def forget(self, key: ObjectKey) -> None:
        self._specs.pop(key, None)
