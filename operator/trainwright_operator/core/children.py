"""The children of one attempt as plain objects: a Service, one Indexed Job for each slice, and what those need beside.

Nothing of an attempt repeats in the next one: Jobs, pods and hostnames carry its number, because the name of a
terminating pod still resolves. What a pod reads rides in its own template, so that a Job is one atomic object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from trainwright.contract import (
    MASTER_PORT,
    MAX_RESOLVED_JOB_BYTES,
    PREFLIGHT_SECONDS,
    PREFLIGHT_SLOWDOWN,
    SCRIPT_DIR,
    ResolvedJob,
)
from trainwright_operator.api import names
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core import elastic
from trainwright_operator.core.gangs import ONE_BY_ONE, SCHEDULERS, GangScheduler
from trainwright_operator.core.gangs.gang import Gang, Membership
from trainwright_operator.core.observe import config_map_of
from trainwright_operator.core.placement.vendor import Placement, Seat
from trainwright_operator.core.pods import JOB_KEY, Budget, PodPlan, PushEndpoint, pod_template, unqueued

Object = dict[str, Any]

NEVER_SECONDS = 10 * 365 * 86_400
"""In place of a hang timeout of 0, which older trainers would take at its word."""
NO_RESTARTS = Budget()
CLAIM_TEMPLATE_VERSION = "resource.k8s.io/v1"


def service_name(job: TrainingJob) -> str:
    """With a prefix: a Service of the job's own name may one day serve the model."""
    return f"tj-{job.name}"


def job_name(job: TrainingJob, slice_: int, attempt: int) -> str:
    return f"{job.name}-{slice_}-{attempt}"


def attempt_name(job: TrainingJob, attempt: int) -> str:
    """Of what an attempt has one of beside its Jobs: ConfigMap, PodGroup, ResourceClaimTemplate."""
    return f"tj-{job.name}-{attempt}"


def children(
    job: TrainingJob,
    place: Placement,
    attempt: int,
    endpoint: PushEndpoint | None = None,
    scheduler: GangScheduler | None = None,
    budget: Budget = NO_RESTARTS,
) -> tuple[Object, ...]:
    """In the order in which they are applied: the Jobs come last, so that an attempt that exists is whole.

    ``scheduler`` starts the gang; by default the pods start one by one. ``budget`` is for restarts in place.
    """
    resolved = resolve(job, place, attempt).to_json()
    fits = len(resolved.encode()) <= MAX_RESOLVED_JOB_BYTES
    own = _metadata_of_attempt(job, attempt)
    membership = (scheduler or ONE_BY_ONE.of(job)).membership(_gang(job, place, own))
    found: list[Object] = []
    if place.pods > 1:
        found.append(service(job))
    if not fits:
        found.append(_config_map(own, resolved))
    if place.device_class:
        found.append(_claim_template(own, place))
    found += membership.objects
    plans = _pod_plans(job, place, attempt, resolved if fits else None, endpoint, membership)
    found += [_job(job, place, replace(plan, budget=budget)) for plan in plans]
    return tuple(map(hashed, found))


def gang_objects(job: TrainingJob, place: Placement, attempt: int, scheduler: GangScheduler) -> tuple[Object, ...]:
    """Those of the children that the scheduler needs to decide whether the attempt may start."""
    gang = _gang(job, place, _metadata_of_attempt(job, attempt))
    return tuple(map(hashed, scheduler.membership(gang).objects))


def _gang(job: TrainingJob, place: Placement, metadata: Object) -> Gang:
    least = min(place.pods, elastic.sizes(job)[-1]) if elastic.asked(job) else place.pods
    return Gang(job, place.pods, least, metadata)


def attempt_jobs(job: TrainingJob, place: Placement, attempt: int) -> tuple[Object, ...]:
    """The Jobs of an attempt alone, as they would be without a gang scheduler and without an endpoint to push to."""
    return tuple(_job(job, place, plan) for plan in _pod_plans(job, place, attempt, None, None, Membership()))


def beside(template: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the attempt of such pods has one of beside its Jobs: ``apiVersion``, kind and name of each.

    A group of another name was brought by the job itself.
    """
    pod_spec = template.get("spec") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    own = f"tj-{labels.get(names.LABEL_JOB)}-{labels.get(names.LABEL_ATTEMPT)}"
    if config_map := config_map_of(pod_spec):
        yield "v1", "ConfigMap", config_map
    for scheduler in SCHEDULERS:
        if scheduler.KIND and scheduler.group_of(template) == own:
            yield scheduler.KIND.versions[0], scheduler.KIND.kind, own
    for claim in pod_spec.get("resourceClaims") or ():
        if claim["name"] == names.CLAIM:
            yield CLAIM_TEMPLATE_VERSION, "ResourceClaimTemplate", claim["resourceClaimTemplateName"]


def resolve(job: TrainingJob, place: Placement, attempt: int) -> ResolvedJob:
    """What the pods of the attempt read; a script that lies in a ConfigMap is named by its path in the pod.

    What a script asks for beside itself is a field of the job's own: an older trainer that does not know it refuses it.
    """
    spec = job.spec
    return ResolvedJob(
        name=job.name,
        namespace=job.namespace,
        uid=job.origin or job.uid,
        attempt=attempt,
        nodes=place.pods,
        per_node=place.per_node,
        training_arguments=dict(spec.training_arguments),
        task=spec.task,
        model=_as_dict(spec.model),
        dataset=_as_dict(spec.dataset),
        script=_script(spec.script),
        overlay=bool(spec.script and spec.script.get("overlay")),
        requirements=list((spec.script or {}).get("requirements") or ()),
        sample=_as_dict(spec.sample),
        offline=spec.offline,
        hang_timeout_seconds=NEVER_SECONDS if spec.hang_timeout_seconds == 0 else spec.hang_timeout_seconds,
        grace_period_seconds=spec.termination_grace_period_seconds,
        adopt_output=spec.output.adopt,
        async_save=spec.output.async_save,
        on_anomaly=spec.on_anomaly if spec.watches_steps else None,
        anomaly_factor=spec.anomaly_factor,
        preflight=_preflight(spec.preflight),
        start_method=spec.start_method,
    )


def _preflight(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    defaults = {"timeoutSeconds": PREFLIGHT_SECONDS, "maxSlowdown": PREFLIGHT_SLOWDOWN}
    return None if given is None else {**defaults, **given}


def _as_dict(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _script(script: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if script is None:
        return None
    found = {key: value for key, value in script.items() if key not in ("overlay", "requirements")}
    if "configMap" in script:
        found["path"] = f"{SCRIPT_DIR}/{script['configMap']['key']}"
    return found


def service(job: TrainingJob) -> Object:
    """The same for all attempts of a job: by it the pods find each other."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(job, service_name(job)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: job.name, names.LABEL_JOB_UID: job.uid},
        },
    }


def _config_map(metadata: Object, resolved: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {JOB_KEY: resolved},
    }


def _claim_template(metadata: Object, place: Placement) -> Object:
    """Every pod gets a claim of its own by it: as many devices of the pool's class as a pod has accelerators."""
    exactly: Object = {"deviceClassName": place.device_class, "allocationMode": "ExactCount", "count": place.devices}
    if place.device_selectors:
        exactly["selectors"] = [{"cel": {"expression": expression}} for expression in place.device_selectors]
    return {
        "apiVersion": CLAIM_TEMPLATE_VERSION,
        "kind": "ResourceClaimTemplate",
        "metadata": metadata,
        "spec": {"spec": {"devices": {"requests": [{"name": names.CLAIM, "exactly": exactly}]}}},
    }


def _pod_plans(
    job: TrainingJob,
    place: Placement,
    attempt: int,
    resolved: str | None,
    endpoint: PushEndpoint | None,
    membership: Membership,
) -> Iterator[PodPlan]:
    """What tells the pods of one slice from those of another."""
    service, shared = service_name(job), attempt_name(job, attempt)
    master = f"{job_name(job, 0, attempt)}-0.{service}"
    former = (one for one in job.status.get("attempts") or () if one["attempt"] < attempt)
    reached = max((one.get("step") or 0 for one in former), default=0)
    for slice_ in range(place.slices):
        name = job_name(job, slice_, attempt)
        hosts = tuple(f"{name}-{host}.{service}" for host in range(place.nodes))
        yield PodPlan(
            job_name=name,
            labels={**_labels(job), names.LABEL_ATTEMPT: str(attempt), names.LABEL_SLICE: str(slice_)},
            master=master,
            subdomain=service,
            resolved=resolved,
            config_map=shared,
            endpoint=endpoint,
            seat=Seat(slice_, hosts, master, f"{job.uid}/{attempt}"),
            membership=membership,
            claim_template=shared if place.device_class else None,
            reached=reached,
        )


def _job(job: TrainingJob, place: Placement, plan: PodPlan) -> Object:
    """``backoffLimit: 0`` and no podFailurePolicy: one pod's end is the end of the attempt, and the policy is ours."""
    labels = {**plan.labels, names.LABEL_SLICES: str(place.slices)} if place.slices > 1 else plan.labels
    metadata = _metadata(job, plan.job_name, {**unqueued(job.spec.job_template.labels, place), **labels})
    annotations = dict(job.spec.job_template.annotations)
    if place.pods > 1 and plan.endpoint:
        annotations[names.ANNOTATION_MEETS_AT] = f"{plan.master}:{MASTER_PORT}"
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
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


def child_metadata(job: TrainingJob, name: str) -> Object:
    """The metadata of an object that the job has one of over all its attempts."""
    return _metadata(job, name, _labels(job))


def _metadata_of_attempt(job: TrainingJob, attempt: int) -> Object:
    return _metadata(job, attempt_name(job, attempt), {**_labels(job), names.LABEL_ATTEMPT: str(attempt)})


def _metadata(job: TrainingJob, name: str, labels: Mapping[str, str]) -> Object:
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    borne = {**job.propagated, **labels}
    return {"name": name, "namespace": job.namespace, "labels": borne, "ownerReferences": [owner]}


def hashed(child: Object) -> Object:
    """With the hash of what was planned, by which a child that is as it should be is told without comparing it."""
    text = json.dumps(child, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    annotations = {**child["metadata"].get("annotations", {}), names.ANNOTATION_HASH: digest}
    return {**child, "metadata": {**child["metadata"], "annotations": annotations}}
