"""TrainingJob and AcceleratorPool as the operator thinks of them: frozen, checked, nothing left to doubt.

``parse_job`` and ``parse_pool`` take a manifest as plain dicts and either give the object or raise :class:`SpecError`
with every mistake at once. After that nobody in the operator asks again whether a field is there or has the right type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainwright_operator.api import crd, declare, mirror, names
from trainwright_operator.api.job import evaluates, has_eval_data
from trainwright_operator.api.pod_template import PodTemplate
from trainwright_operator.api.pool import AcceleratorPool
from trainwright_operator.api.types import Problem

__all__ = ["AcceleratorPool", "JobSpec", "Problem", "SpecError", "TrainingJob", "parse_job", "parse_pool"]

DEFAULT_MAX_RESTARTS = 3
DEFAULT_GRACE_PERIOD_SECONDS = 30
DEFAULT_VALIDATION_FRACTION = 0.05


class SpecError(ValueError):
    """A manifest that cannot be accepted; ``problems`` holds every mistake, in the manifest's order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Accelerator:
    """Where to run: ``None`` is left to the pool (a TPU's topology, else one node, and one accelerator a node)."""

    pool: str | None = None
    nodes: int | None = None
    per_node: int | None = None


@dataclass(frozen=True)
class Output:
    """Where checkpoints and the model go: one volume, and a folder in it."""

    volume: Mapping[str, Any]
    """A Kubernetes volume source: ``{"persistentVolumeClaim": {"claimName": ...}}``, ``{"hostPath": ...}`` or
    ``{"emptyDir": {}}``."""
    sub_path: str
    """Relative to the volume's root; the job's own name when the manifest names none."""
    adopt: bool = False
    async_save: bool = False


@dataclass(frozen=True)
class SecretKey:
    """One key of a Secret in the job's namespace."""

    name: str
    key: str


@dataclass(frozen=True)
class JobSpec:
    """``spec`` of a TrainingJob.

    ``model``, ``dataset``, ``script`` and ``sample`` are the manifest's own objects (camelCase keys), which travel to
    the trainer unchanged; ``training_arguments`` has snake_case names and only what the manifest states.
    """

    output: Output
    training_arguments: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None
    dataset: Mapping[str, Any] | None = None
    task: str | None = None
    script: Mapping[str, Any] | None = None
    sample: Mapping[str, Any] | None = None
    accelerator: Accelerator = Accelerator()
    pod_template: PodTemplate = field(default_factory=PodTemplate)
    job_labels: Mapping[str, str] = field(default_factory=dict)
    job_annotations: Mapping[str, str] = field(default_factory=dict)
    hub_token: SecretKey | None = None
    suspend: bool = False
    max_restarts: int = DEFAULT_MAX_RESTARTS
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    delete_after_finished: bool = False
    hang_timeout_seconds: int | None = None
    termination_grace_period_seconds: int = DEFAULT_GRACE_PERIOD_SECONDS
    offline: bool = False


@dataclass(frozen=True)
class TrainingJob:
    """A checked TrainingJob. ``uid`` is empty and ``generation`` 1 for a manifest that was never in a cluster."""

    name: str
    spec: JobSpec
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    propagated: Mapping[str, str] = field(default_factory=dict)
    """Those of its labels that all of its children bear, as the operator is told to."""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)


def parse_job(manifest: Mapping[str, Any]) -> TrainingJob:
    """The job of a manifest or of an object from the API server; :class:`SpecError` names every mistake."""
    manifest = _accepted(manifest, names.JOB_KIND)
    metadata = manifest["metadata"]
    name = metadata.get("name") or f"{metadata['generateName']}00000"
    return TrainingJob(
        name=name,
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 1,
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        creation_timestamp=metadata.get("creationTimestamp"),
        deletion_timestamp=metadata.get("deletionTimestamp"),
        finalizers=tuple(metadata.get("finalizers") or ()),
        spec=_job_spec(manifest["spec"], name),
        status=manifest.get("status") or {},
    )


def _accepted(manifest: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    problems = crd.problems(manifest)
    if not problems and manifest["kind"] != kind:
        problems = [Problem("kind", f"is {manifest['kind']}, not {kind}")]
    if problems:
        raise SpecError(tuple(problems))
    return crd.as_stored(manifest)


def _job_spec(spec: Mapping[str, Any], name: str) -> JobSpec:
    accelerator = spec.get("accelerator") or {}
    arguments = spec.get("trainingArguments", {})
    hub_token = arguments.get("hubToken")
    of_jobs = (spec.get("jobTemplate") or {}).get("metadata") or {}
    return JobSpec(
        output=_output(spec["output"], name),
        training_arguments=mirror.to_arguments(arguments),
        model=spec.get("model"),
        dataset=_dataset(spec),
        task=spec.get("task"),
        script=spec.get("script"),
        sample=spec.get("sample"),
        accelerator=Accelerator(accelerator.get("pool"), accelerator.get("nodes"), accelerator.get("perNode")),
        pod_template=PodTemplate.of(spec.get("podTemplate") or {}),
        job_labels=of_jobs.get("labels") or {},
        job_annotations=of_jobs.get("annotations") or {},
        hub_token=SecretKey(**hub_token["secretKeyRef"]) if hub_token else None,
        suspend=spec.get("suspend", False),
        max_restarts=spec.get("maxRestarts", DEFAULT_MAX_RESTARTS),
        active_deadline_seconds=spec.get("activeDeadlineSeconds"),
        ttl_seconds_after_finished=spec.get("ttlSecondsAfterFinished"),
        delete_after_finished=spec.get("deleteAfterFinished", False),
        hang_timeout_seconds=spec.get("hangTimeoutSeconds"),
        termination_grace_period_seconds=spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_PERIOD_SECONDS),
        offline=spec.get("offline", False),
    )


def _dataset(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The dataset, with rows held out where evaluation is asked for and nothing says on what."""
    dataset = spec.get("dataset")
    if dataset is None or not evaluates(spec) or has_eval_data(dataset):
        return dataset
    return {**dataset, "validationFraction": DEFAULT_VALIDATION_FRACTION}


def _output(output: Mapping[str, Any], name: str) -> Output:
    volume = {key: output[key] for key in ("persistentVolumeClaim", "hostPath", "emptyDir") if key in output}
    return Output(
        volume=volume,
        sub_path=output.get("subPath") or name,
        adopt=output.get("adopt", False),
        async_save=output.get("asyncSave", False),
    )


def parse_pool(manifest: Mapping[str, Any]) -> AcceleratorPool:
    """The pool of a manifest; :class:`SpecError` names every mistake."""
    manifest = _accepted(manifest, names.POOL_KIND)
    metadata = manifest["metadata"]
    return AcceleratorPool(
        name=metadata.get("name") or f"{metadata['generateName']}00000",
        annotations=metadata.get("annotations") or {},
        **declare.read(AcceleratorPool, manifest["spec"]),
    )
