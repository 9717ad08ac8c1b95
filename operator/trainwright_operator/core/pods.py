"""The pod of an attempt: one container that runs the launcher, told everything by its environment and one mounted file.

It fits the restricted Pod Security Standard: no root, no privilege, a read-only root file system. What a job needs
besides comes from ``spec.podTemplate`` and wins wherever the rendezvous and the contract with the launcher allow it.

Sidecars and init containers of the job's own fit that standard too, whatever their images are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainwright.contract import (
    ENV_FAILURES_IN_A_ROW,
    ENV_FIRST_NODE_RANK,
    ENV_JOB_FILE,
    ENV_OUTPUT_DIR,
    ENV_PACKAGES_DIR,
    ENV_PROGRESS_CA,
    ENV_PROGRESS_TOKEN,
    ENV_PROGRESS_URL,
    ENV_REACHED_STEP,
    ENV_RESTARTS_LEFT,
    ENV_RUNTIME,
    ENV_TERMINATION_FILE,
    ENV_VENDOR,
    JOB_FILE,
    MASTER_PORT,
    OUTPUT_DIR,
    PACKAGES_DIR,
    SCRIPT_DIR,
    TERMINATION_FILE,
)
from trainwright_operator.api import names
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.avoidance import avoiding
from trainwright_operator.core.gangs.gang import Membership
from trainwright_operator.core.observe import COMPLETION_INDEX
from trainwright_operator.core.placement import affinity
from trainwright_operator.core.placement.vendor import Placement, Seat
from trainwright_operator.core.queues.workload import LABEL_QUEUE

Object = dict[str, Any]

LAUNCHER = ("python", "-m", "trainwright.launcher")
INSTALLER = ("python", "-m", "trainwright.launch.requirements")
JOB_DIR, JOB_KEY = JOB_FILE.rsplit("/", 1)
HOME = "/home/trainer"
USER_ID = 1000
LOST_NODE_SECONDS = 30
"""How long a pod stays bound to a node that is gone; Kubernetes' own default of 300 s would idle its peers as long."""
TOKEN_SECONDS = 3600


@dataclass(frozen=True)
class PushEndpoint:
    """Where pods push their progress: the whole address for this job, the token's audience, the CA in PEM."""

    url: str
    audience: str
    ca: str


@dataclass(frozen=True)
class Budget:
    """How often launchers may restart ranks in place, and how many quick failures in a row there were before."""

    restarts_left: int = 0
    failures_in_a_row: int = 0


@dataclass(frozen=True)
class PodPlan:
    """What tells the pods of one Job from those of another; ``resolved`` is None when it rides in the ConfigMap."""

    job_name: str
    labels: Mapping[str, str]
    master: str
    subdomain: str
    resolved: str | None
    config_map: str
    seat: Seat
    membership: Membership
    endpoint: PushEndpoint | None = None
    claim_template: str | None = None
    reached: int = 0
    """The furthest step that former attempts reported."""
    budget: Budget = Budget()


def pod_template(job: TrainingJob, place: Placement, plan: PodPlan) -> Object:
    template = job.spec.pod_template
    annotations = {
        names.ANNOTATION_RESOLVED_JOB: plan.resolved,
        names.ANNOTATION_PROGRESS_CA: plan.endpoint.ca if plan.endpoint else None,
    }
    return {
        "metadata": {
            "labels": {
                **job.propagated,
                **unqueued(template.labels, place),
                **(place.labels or {}),
                **plan.membership.labels,
                **plan.labels,
            },
            "annotations": {
                names.ANNOTATION_CONTAINER: names.CONTAINER,
                **(place.annotations or {}),
                **template.annotations,
                **plan.membership.annotations,
                **_present(annotations),
            },
        },
        "spec": _present(
            {
                "restartPolicy": "Never",
                "subdomain": plan.subdomain,
                "terminationGracePeriodSeconds": job.spec.termination_grace_period_seconds,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "serviceAccountName": template.service_account_name,
                "priorityClassName": template.priority_class_name,
                "schedulerName": template.scheduler_name or place.scheduler,
                "schedulingGates": [{"name": gate} for gate in place.gates] or None,
                **plan.membership.pod_spec,
                "runtimeClassName": place.runtime_class,
                "nodeSelector": dict(place.node_selector or {}) or None,
                "affinity": _affinity(job, place, plan),
                "topologySpreadConstraints": affinity.spread(template.topology_spread_constraints, plan.labels) or None,
                "dnsConfig": template.dns_config,
                **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if template.host_network else {}),
                "tolerations": _tolerations(place.tolerations),
                "imagePullSecrets": list(template.image_pull_secrets) or None,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER_ID,
                    "runAsGroup": USER_ID,
                    "fsGroup": USER_ID,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                    **({"supplementalGroups": list(place.groups)} if place.groups else {}),
                },
                "resourceClaims": _claims(job, plan) or None,
                "initContainers": [*beside(job, place), *_requirements(job, place, plan)] or None,
                "containers": [_container(job, place, plan)],
                "volumes": _volumes(job, place, plan),
            }
        ),
    }


def unqueued(labels: Mapping[str, str], place: Placement) -> Mapping[str, str]:
    """Without the queue that would hold Jobs or pods up a second time, for the quota that their job already has."""
    return {name: value for name, value in labels.items() if not place.labels or name != LABEL_QUEUE}


def _affinity(job: TrainingJob, place: Placement, plan: PodPlan) -> Object | None:
    """The job's, the pool's, and that of its topology, unless a queue has chosen the nodes by it."""
    stated = affinity.affinity(
        job.spec.pod_template.affinity, plan.labels, place.vendor.affinity(place, plan.labels, plan.job_name)
    )
    stated = avoiding(stated, (one["node"] for one in job.status.get("avoidedNodes") or ()))
    if place.gates or place.pods == 1:
        return stated
    return affinity.affinity(stated or {}, plan.labels, affinity.together(job.spec.accelerator.topology, plan.labels))


def _container(job: TrainingJob, place: Placement, plan: PodPlan) -> Object:
    template = job.spec.pod_template
    claims = [*([{"name": names.CLAIM}] if plan.claim_template else []), *(template.resources.get("claims") or ())]
    resources = {"requests": dict(place.requests), "limits": dict(place.limits), "claims": claims}
    return _present(
        {
            "name": names.CONTAINER,
            "image": place.image,
            "imagePullPolicy": template.image_pull_policy,
            "command": list(LAUNCHER),
            "env": _environment(job, place, plan),
            "envFrom": list(template.env_from) or None,
            "resources": {kind: amounts for kind, amounts in resources.items() if amounts},
            "volumeMounts": _mounts(job, place),
            "ports": [{"containerPort": MASTER_PORT, "hostPort": MASTER_PORT}] if template.host_network else None,
            "terminationMessagePath": TERMINATION_FILE,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], **({"add": list(place.capabilities)} if place.capabilities else {})},
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
            },
        }
    )


def _requirements(job: TrainingJob, place: Placement, plan: PodPlan) -> list[Object]:
    """Installs the script's requirements: with the trainer's environment and volumes, but without its devices.

    It comes after the job's own init containers, which may bring wheels.
    """
    if not _required(job):
        return []
    trainer = _container(job, place, plan)
    amounts = {
        kind: {name: amount for name, amount in trainer["resources"].get(kind, {}).items() if name in _ORDINARY}
        for kind in ("requests", "limits")
    }
    kept = ("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "terminationMessagePath", "securityContext")
    return [
        {
            "name": names.REQUIREMENTS,
            "command": list(INSTALLER),
            **{field: trainer[field] for field in kept if field in trainer},
            "resources": {kind: found for kind, found in amounts.items() if found},
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }
    ]


_ORDINARY = ("cpu", "memory", "ephemeral-storage")


def _required(job: TrainingJob) -> bool:
    return bool((job.spec.script or {}).get("requirements"))


def _environment(job: TrainingJob, place: Placement, plan: PodPlan) -> list[Object]:
    """The rendezvous and the contract first, which nobody may override; then defaults, the pool's and the job's own."""
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}}
    owned: list[Object] = [
        {"name": "PET_NNODES", "value": str(place.pods)},
        {"name": "PET_NPROC_PER_NODE", "value": str(place.per_node)},
        {"name": "PET_NODE_RANK", "valueFrom": index},
        *_first_rank(place, plan),
        {"name": "PET_MASTER_ADDR", "value": plan.master},
        {"name": "PET_MASTER_PORT", "value": str(MASTER_PORT)},
        {"name": ENV_JOB_FILE, "value": JOB_FILE},
        {"name": ENV_OUTPUT_DIR, "value": OUTPUT_DIR},
        {"name": ENV_TERMINATION_FILE, "value": TERMINATION_FILE},
        {"name": ENV_VENDOR, "value": place.vendor.name},
        {"name": ENV_RUNTIME, "value": place.launcher},
        *([{"name": ENV_PACKAGES_DIR, "value": PACKAGES_DIR}] if _required(job) else []),
        *([{"name": ENV_REACHED_STEP, "value": str(plan.reached)}] if plan.reached else []),
        *_budget(plan.budget),
        *_progress(plan.endpoint),
    ]
    settable: list[Object] = [
        {"name": "OMP_NUM_THREADS", "value": str(place.threads)},
        {"name": "HOME", "value": HOME},
        {"name": "USER", "value": "trainer"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        *_hub(job),
        *place.vendor.environment(place, plan.seat),
        *place.env,
        *job.spec.pod_template.env,
    ]
    taken = {variable["name"] for variable in owned}
    return [*owned, *_last_of_each(variable for variable in settable if variable["name"] not in taken)]


def _budget(budget: Budget) -> list[Object]:
    """Not in the resolved job: a launcher of an older image ignores a variable, but would refuse a field."""
    if not budget.restarts_left:
        return []
    counts = ((ENV_RESTARTS_LEFT, budget.restarts_left), (ENV_FAILURES_IN_A_ROW, budget.failures_in_a_row))
    return [{"name": name, "value": str(count)} for name, count in counts if count]


def _first_rank(place: Placement, plan: PodPlan) -> list[Object]:
    """A completion index counts the hosts of a slice; a node's rank those of all slices."""
    if place.slices == 1:
        return []
    return [{"name": ENV_FIRST_NODE_RANK, "value": str(plan.seat.index * place.nodes)}]


def _last_of_each(variables: Iterable[Object]) -> list[Object]:
    """One variable a name: the last one wins, and keeps its place after what it may refer to."""
    last: dict[str, Object] = {}
    for variable in variables:
        last.pop(variable["name"], None)
        last[variable["name"]] = variable
    return list(last.values())


def _progress(endpoint: PushEndpoint | None) -> list[Object]:
    if endpoint is None:
        return []
    return [
        {"name": ENV_PROGRESS_URL, "value": endpoint.url},
        {"name": ENV_PROGRESS_CA, "value": f"{JOB_DIR}/progress-ca.crt"},
        {"name": ENV_PROGRESS_TOKEN, "value": f"{JOB_DIR}/progress-token"},
    ]


def _hub(job: TrainingJob) -> list[Object]:
    found: list[Object] = []
    if token := job.spec.hub_token:
        found.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}})
    if job.spec.offline:
        found += [{"name": name, "value": "1"} for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")]
    return found


def _tolerations(more: Iterable[Object]) -> list[Object]:
    lost = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
    return [*({"key": f"node.kubernetes.io/{taint}", **lost} for taint in ("not-ready", "unreachable")), *more]


def _claims(job: TrainingJob, plan: PodPlan) -> list[Object]:
    own = {"name": names.CLAIM, "resourceClaimTemplateName": plan.claim_template}
    return [*([own] if plan.claim_template else []), *job.spec.pod_template.resource_claims]


def _mounts(job: TrainingJob, place: Placement) -> list[Object]:
    template = job.spec.pod_template
    own: list[Object] = [
        {"name": names.VOLUME_JOB, "mountPath": JOB_DIR, "readOnly": True},
        {"name": names.VOLUME_OUTPUT, "mountPath": OUTPUT_DIR, **folder_of_output(job)},
        {"name": "trainwright-home", "mountPath": HOME},
        {"name": "trainwright-tmp", "mountPath": "/tmp"},
        {"name": "trainwright-shm", "mountPath": "/dev/shm"},
        *([{"name": names.REQUIREMENTS, "mountPath": PACKAGES_DIR}] if _required(job) else []),
    ]
    theirs = {mount["mountPath"].rstrip("/") for mount in template.volume_mounts}
    before = [mount for mount in (*own, *place.volume_mounts) if mount["mountPath"].rstrip("/") not in theirs]
    return [*before, *template.volume_mounts]


def _volumes(job: TrainingJob, place: Placement, plan: PodPlan) -> list[Object]:
    shm = _present({"medium": "Memory", "sizeLimit": place.shm_size})
    own: list[Object] = [
        {"name": names.VOLUME_JOB, "projected": {"sources": _job_sources(job, plan)}},
        {"name": names.VOLUME_OUTPUT, **job.spec.output.volume},
        {"name": "trainwright-home", "emptyDir": {}},
        {"name": "trainwright-tmp", "emptyDir": {}},
        {"name": "trainwright-shm", "emptyDir": shm},
        {"name": names.REQUIREMENTS, "emptyDir": {}},
    ]
    mounted = {mount["name"] for mount in _mounts(job, place)}
    stated = {volume["name"] for volume in job.spec.pod_template.volumes}
    before = [volume for volume in (*own, *place.volumes) if volume["name"] in mounted - stated]
    return [*before, *job.spec.pod_template.volumes]


def _job_sources(job: TrainingJob, plan: PodPlan) -> list[Object]:
    """One read-only folder of everything the pod is told: the resolved job, the script, the endpoint's CA and token."""
    if plan.resolved is None:
        items = [{"key": JOB_KEY, "path": JOB_KEY}]
        sources: list[Object] = [{"configMap": {"name": plan.config_map, "items": items}}]
    else:
        sources = [_downward(names.ANNOTATION_RESOLVED_JOB, JOB_KEY)]
    if reference := (job.spec.script or {}).get("configMap"):
        path = f"{SCRIPT_DIR.removeprefix(JOB_DIR)[1:]}/{reference['key']}"
        sources.append({"configMap": {"name": reference["name"], "items": [{"key": reference["key"], "path": path}]}})
    if plan.endpoint:
        sources.append(_downward(names.ANNOTATION_PROGRESS_CA, "progress-ca.crt"))
        token = {"audience": plan.endpoint.audience, "expirationSeconds": TOKEN_SECONDS, "path": "progress-token"}
        sources.append({"serviceAccountToken": token})
    return sources


def _downward(annotation: str, path: str) -> Object:
    field = {"fieldPath": f"metadata.annotations['{annotation}']"}
    return {"downwardAPI": {"items": [{"path": path, "fieldRef": field}]}}


def _present(values: Mapping[str, Any]) -> Object:
    return {key: value for key, value in values.items() if value is not None}


def beside(job: TrainingJob, place: Placement) -> list[Object]:
    """Sidecars first, which an init container may need; Kubernetes calls both init containers."""
    template = job.spec.pod_template
    return [
        *({**_beside(job, place, one), "restartPolicy": "Always"} for one in template.sidecars),
        *(_beside(job, place, one) for one in template.init_containers),
    ]


def folder_of_output(job: TrainingJob) -> Object:
    """Where in the output's volume the job's own folder is."""
    output = job.spec.output
    return {} if "emptyDir" in output.volume else {"subPath": output.sub_path}


def _beside(job: TrainingJob, place: Placement, stated: Object) -> Object:
    mounts = [_mount(job, one) for one in stated.get("volumeMounts") or ()]
    return {
        "image": place.image,
        **stated,
        **({"volumeMounts": mounts} if mounts else {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "runAsNonRoot": True,
            **(stated.get("securityContext") or {}),
        },
    }


def _mount(job: TrainingJob, stated: Object) -> Object:
    return {**folder_of_output(job), **stated} if stated["name"] == names.VOLUME_OUTPUT else stated
