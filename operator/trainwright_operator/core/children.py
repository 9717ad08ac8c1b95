"""The children of one attempt as plain objects: a Service, one Indexed Job for each slice, a ConfigMap when need be.

Nothing of an attempt repeats in the next one: Jobs, pods and hostnames carry its number, because the name of a
terminating pod still resolves. What a pod is told rides in its own template, so that a Job is one atomic object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainwright.contract import MAX_RESOLVED_JOB_BYTES, SCRIPT_DIR, ResolvedJob
from trainwright_operator import names
from trainwright_operator.core.pods import JOB_KEY, Endpoint, PodPlan, pod_template
from trainwright_operator.core.pools import Placement
from trainwright_operator.core.spec import TrainingJob

Object = dict[str, Any]


def service_name(job: TrainingJob) -> str:
    """With a prefix: a Service of the job's own name may one day serve the model."""
    return f"tj-{job.name}"


def job_name(job: TrainingJob, slice_: int, attempt: int) -> str:
    return f"{job.name}-{slice_}-{attempt}"


def config_map_name(job: TrainingJob, attempt: int) -> str:
    return f"tj-{job.name}-{attempt}"


def children(job: TrainingJob, place: Placement, attempt: int, endpoint: Endpoint | None = None) -> tuple[Object, ...]:
    """In the order in which they are applied: the Jobs come last, so that an attempt that exists is whole."""
    resolved = resolve(job, place, attempt).to_json()
    fits = len(resolved.encode()) <= MAX_RESOLVED_JOB_BYTES
    found: list[Object] = []
    if place.nodes * place.slices > 1:
        found.append(_service(job))
    if not fits:
        found.append(_config_map(job, attempt, resolved))
    found += [_job(job, place, slice_, attempt, resolved if fits else None, endpoint) for slice_ in range(place.slices)]
    return tuple(map(_hashed, found))


def resolve(job: TrainingJob, place: Placement, attempt: int) -> ResolvedJob:
    """What the pods of the attempt read; a script that lies in a ConfigMap is named by its path in the pod."""
    spec = job.spec
    return ResolvedJob(
        name=job.name,
        namespace=job.namespace,
        uid=job.uid,
        attempt=attempt,
        nodes=place.nodes * place.slices,
        per_node=place.per_node,
        training_arguments=dict(spec.training_arguments),
        task=spec.task,
        model=_plain(spec.model),
        dataset=_plain(spec.dataset),
        script=_script(spec.script),
        sample=_plain(spec.sample),
        offline=spec.offline,
        hang_timeout_seconds=spec.hang_timeout_seconds,
        grace_period_seconds=spec.termination_grace_period_seconds,
        adopt_output=spec.output.adopt,
    )


def _plain(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _script(script: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if script is None or "configMap" not in script:
        return _plain(script)
    return {**script, "path": f"{SCRIPT_DIR}/{script['configMap']['key']}"}


def _service(job: TrainingJob) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, service_name(job), _labels(job)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: job.name, names.LABEL_JOB_UID: job.uid},
        },
    }


def _config_map(job: TrainingJob, attempt: int, resolved: str) -> Object:
    labels = {**_labels(job), names.LABEL_ATTEMPT: str(attempt)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, config_map_name(job, attempt), labels),
        "immutable": True,
        "data": {JOB_KEY: resolved},
    }


def _job(
    job: TrainingJob, place: Placement, slice_: int, attempt: int, resolved: str | None, endpoint: Endpoint | None
) -> Object:
    """``backoffLimit: 0`` and no podFailurePolicy: one pod's end is the end of the attempt, and the policy is ours."""
    labels = {**_labels(job), names.LABEL_ATTEMPT: str(attempt), names.LABEL_SLICE: str(slice_)}
    plan = PodPlan(
        labels=labels,
        master=f"{job_name(job, 0, attempt)}-0.{service_name(job)}",
        subdomain=service_name(job),
        resolved=resolved,
        config_map=config_map_name(job, attempt),
        endpoint=endpoint,
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, job_name(job, slice_, attempt), labels),
        "spec": {
            "completionMode": "Indexed",
            "completions": place.nodes,
            "parallelism": place.nodes,
            "backoffLimit": 0,
            "template": pod_template(job, place, plan),
        },
    }


def _labels(job: TrainingJob) -> dict[str, str]:
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_JOB: job.name,
        names.LABEL_JOB_UID: job.uid,
    }


def _metadata(job: TrainingJob, name: str, labels: Mapping[str, str]) -> Object:
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {"name": name, "namespace": job.namespace, "labels": dict(labels), "ownerReferences": [owner]}


def _hashed(child: Object) -> Object:
    """With the hash of what was planned, by which a child that is as it should be is told without comparing it."""
    text = json.dumps(child, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = {**child["metadata"], "annotations": {names.ANNOTATION_HASH: digest}}
    return {**child, "metadata": metadata}
