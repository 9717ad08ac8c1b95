"""TrainingJob and AcceleratorPool as frozen, validated objects.

``parse_job`` and ``parse_pool`` take a manifest as plain dicts, and return the object or raise :class:`SpecError` with
all problems. The rest of the operator relies on this, and does not check fields or types again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trainwright_operator.api import crd, declare, mirror, names
from trainwright_operator.api.job import Accelerator, JobSpec, Output, SecretKey, evaluates, has_eval_data
from trainwright_operator.api.pool import AcceleratorPool
from trainwright_operator.api.types import Problem

__all__ = [
    "Accelerator",
    "AcceleratorPool",
    "JobSpec",
    "Output",
    "Problem",
    "SecretKey",
    "SpecError",
    "TrainingJob",
    "job_with_spec",
    "parse_job",
    "parse_pool",
]

DEFAULT_VALIDATION_FRACTION = 0.05


class SpecError(ValueError):
    """The manifest is invalid; ``problems`` holds all problems, in the order of the manifest."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class TrainingJob:
    """A validated TrainingJob. A manifest that was never in a cluster has an empty ``uid`` and ``generation`` 1."""

    name: str
    spec: JobSpec
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    propagated: Mapping[str, str] = field(default_factory=dict)
    """The labels of the job that all its children get, by the operator's settings."""
    origin: str = ""
    """The uid of the job of which MultiKueue has made this one as a copy; checkpoints belong to that."""
    attempts_elsewhere: int = 0
    """The number of the last attempt in the clusters that had the job before."""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)

    def asked(self, key: str) -> str:
        """What a label or annotation of the job, or of its pods, says; empty if none is set."""
        pods = self.spec.pod_template
        return next(
            (found[key] for found in (self.labels, self.annotations, pods.labels, pods.annotations) if found.get(key)),
            "",
        )


def parse_job(manifest: Mapping[str, Any]) -> TrainingJob:
    """The job of a manifest or of an object from the API server; raises :class:`SpecError` with all problems."""
    manifest = _accepted(manifest, names.JOB_KIND)
    return job_with_spec(manifest, _job_spec(manifest["spec"], _name(manifest)))


def job_with_spec(manifest: Mapping[str, Any], spec: JobSpec) -> TrainingJob:
    """The job of an object whose spec is already parsed."""
    metadata = manifest["metadata"]
    return TrainingJob(
        name=_name(manifest),
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 1,
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        creation_timestamp=metadata.get("creationTimestamp"),
        deletion_timestamp=metadata.get("deletionTimestamp"),
        finalizers=tuple(metadata.get("finalizers") or ()),
        spec=spec,
        status=manifest.get("status") or {},
    )


def _name(manifest: Mapping[str, Any]) -> str:
    """The name, or a placeholder for one that the API server will generate."""
    metadata = manifest["metadata"]
    return str(metadata.get("name") or f"{metadata['generateName']}00000")


def _accepted(manifest: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    problems = crd.all_problems(manifest)
    if not problems and manifest["kind"] != kind:
        problems = [Problem("kind", f"is {manifest['kind']}, not {kind}")]
    if problems:
        raise SpecError(tuple(problems))
    return crd.as_stored(manifest)


def _job_spec(spec: Mapping[str, Any], name: str) -> JobSpec:
    stated = declare.parse(JobSpec, spec)
    token = stated.training_arguments.get(mirror.camel(mirror.HUB_TOKEN))
    return replace(
        stated,
        output=replace(stated.output, sub_path=stated.output.sub_path or name),
        training_arguments=mirror.to_arguments(stated.training_arguments),
        dataset=_dataset(spec),
        hub_token=SecretKey(**token["secretKeyRef"]) if token else None,
    )


def _dataset(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The dataset; it holds out rows if evaluation is requested and no evaluation data is given."""
    dataset = spec.get("dataset")
    if dataset is None or not evaluates(spec) or has_eval_data(dataset):
        return dataset
    return {**dataset, "validationFraction": DEFAULT_VALIDATION_FRACTION}


def parse_pool(manifest: Mapping[str, Any]) -> AcceleratorPool:
    """The pool of a manifest; raises :class:`SpecError` with all problems."""
    manifest = _accepted(manifest, names.POOL_KIND)
    return AcceleratorPool(
        name=_name(manifest),
        annotations=manifest["metadata"].get("annotations") or {},
        **declare.read(AcceleratorPool, manifest["spec"]),
    )
