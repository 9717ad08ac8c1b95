"""``spec.podTemplate``: a typed, bounded subset of a PodTemplateSpec; all of it would be too large for a CRD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from trainwright_operator.api import containers, formats, scheduling
from trainwright_operator.api.declare import Default
from trainwright_operator.api.types import (
    INT64_MAX,
    Rule,
    Schema,
    boolean,
    exactly_one,
    integer,
    list_of,
    map_of,
    record,
    string,
)
from trainwright_operator.api.volumes import volume

OWNED_ENV = ("PET_", "TRAINWRIGHT_", "KUBEFLOW_TRAINER_SERVER_")
"""Prefixes of the variables that configure the rendezvous; a value set by the user would break it."""

OWNED_MOUNTS = ("/output", "/etc/trainwright")
"""Where the operator mounts the job's output and the resolved job."""


@dataclass(frozen=True)
class PodTemplate:
    """Settings of the pods, under Kubernetes' field names. The operator sets the command, ports, probes, security
    context and restart policy.

    Lists hold Kubernetes objects (EnvVar, Volume, Toleration, ...) as plain dicts.
    """

    metadata: Annotated[Mapping[str, Any], formats.metadata("pod")] = field(default_factory=dict)
    image: Annotated[
        str | None,
        string("The image of the trainer.", 1024, least=1, pattern=formats.NO_SPACE),
        Default("the pool's, else the trainer image of this release"),
    ] = None
    image_pull_policy: Annotated[
        str | None,
        string("When the node pulls the image.", among=["Always", "IfNotPresent", "Never"]),
        Default("Always for the tag latest, else IfNotPresent"),
    ] = None
    image_pull_secrets: Annotated[
        tuple[dict[str, Any], ...],
        list_of(
            "Secrets in the job's namespace with credentials for the image's registry.",
            record("A Secret.", {"name": formats.object_name("The Secret's name.")}, required=["name"]),
            8,
            key="name",
        ),
    ] = ()
    resources: Annotated[Mapping[str, Any], _resources()] = field(default_factory=dict)
    env: Annotated[
        tuple[dict[str, Any], ...], list_of("Environment variables of the trainer.", env_var(), 128, key="name")
    ] = ()
    env_from: Annotated[
        tuple[dict[str, Any], ...],
        list_of("ConfigMaps and Secrets whose every key becomes a variable.", _env_source(), 16),
    ] = ()
    volumes: Annotated[
        tuple[dict[str, Any], ...], list_of("Volumes of the pod, in addition to the output.", volume(), 32, key="name")
    ] = ()
    volume_mounts: Annotated[
        tuple[dict[str, Any], ...],
        list_of("Where the volumes are mounted in the trainer.", mount(), 32, key="mountPath"),
    ] = ()
    service_account_name: Annotated[
        str | None, formats.object_name("The service account of the pods."), Default("the namespace's default")
    ] = None
    priority_class_name: Annotated[
        str | None, formats.object_name("The PriorityClass of the pods."), Default("the cluster's")
    ] = None
    scheduler_name: Annotated[
        str | None, formats.object_name("The scheduler that places the pods."), Default("default-scheduler")
    ] = None
    node_selector: Annotated[
        Mapping[str, str], formats.label_map("Labels that a node must have, in addition to those of the pool.")
    ] = field(default_factory=dict)
    tolerations: Annotated[
        tuple[dict[str, Any], ...],
        list_of("Taints that the pods tolerate, in addition to those of the pool.", toleration(), 32),
    ] = ()
    affinity: Annotated[Mapping[str, Any], scheduling.affinity()] = field(default_factory=dict)
    topology_spread_constraints: Annotated[tuple[dict[str, Any], ...], scheduling.spreading()] = ()
    init_containers: Annotated[tuple[dict[str, Any], ...], containers.init_containers(env_var(), _env_source())] = ()
    sidecars: Annotated[tuple[dict[str, Any], ...], containers.sidecars(env_var(), _env_source())] = ()
    dns_config: Annotated[Mapping[str, Any] | None, scheduling.dns()] = None
    runtime_class_name: Annotated[
        str | None, formats.object_name("The RuntimeClass of the pods."), Default("the pool's, else the node's")
    ] = None
    host_network: Annotated[
        bool,
        boolean(
            "Use the host network, if the pool allows it (allowHostNetwork). The pod then occupies port 29400 of its "
            "node. Namespaces with the restricted or baseline standard forbid it."
        ),
    ] = False
    resource_claims: Annotated[
        tuple[dict[str, Any], ...],
        list_of(
            "Devices by Dynamic Resource Allocation, in addition to those of the pool; the container lists them in "
            "resources.claims.",
            _resource_claim(),
            8,
            key="name",
        ),
    ] = ()

    @staticmethod
    def rules() -> list[Rule]:
        return [
            mounts_have_volumes("podTemplate.volumes"),
            containers.mounts_have_volumes("initContainers"),
            containers.mounts_have_volumes("sidecars"),
            containers.names_are_unique(),
            scheduling.spread_over_different(),
            _claims_are_named(),
        ]

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.metadata.get("annotations") or {}


def mounts_have_volumes(where: str) -> Rule:
    return Rule(
        "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && "
        "self.volumes.exists(v, v.name == m.name))",
        f"every mount must name one of {where}; add the volume",
        _mounts_have_volumes,
        field="volumeMounts",
    )


def _claims_are_named() -> Rule:
    return Rule(
        "!has(self.resources) || !has(self.resources.claims) || self.resources.claims.all(c, "
        "has(self.resourceClaims) && self.resourceClaims.exists(r, r.name == c.name))",
        "every claim of the container must name one of podTemplate.resourceClaims; add it there",
        _claims_have_sources,
        field="resources.claims",
        needs=("resources", "resourceClaims"),
    )


def _claims_have_sources(pod: dict[str, Any]) -> bool:
    known = {claim["name"] for claim in pod.get("resourceClaims", ())}
    return all(claim["name"] in known for claim in pod.get("resources", {}).get("claims", ()))


def _mounts_have_volumes(pod: dict[str, Any]) -> bool:
    known = {volume["name"] for volume in pod.get("volumes", ())}
    return all(mount["name"] in known for mount in pod.get("volumeMounts", ()))


def _resources() -> Schema:
    amounts = formats.quantity("An amount, such as 4, 500m or 16Gi.")
    return record(
        "Resources of the trainer container; pool and perNode set the accelerators.",
        {
            "requests": map_of(
                "What the scheduler reserves: cpu, memory, ephemeral-storage. Default: the limits.", amounts, 32
            ),
            "limits": map_of("The most that the container may use.", amounts, 32),
            "claims": list_of(
                "The claims of podTemplate.resourceClaims that the container uses.",
                record(
                    "A claim.",
                    {
                        "name": string("The name of the claim.", 63, least=1, pattern=formats.LABEL),
                        "request": string(
                            "One request of the claim. Default: all of them.", 63, least=1, pattern=formats.LABEL
                        ),
                    },
                    required=["name"],
                ),
                8,
                key="name",
            ),
        },
    )


def _resource_claim() -> Schema:
    sources = {
        "resourceClaimName": formats.object_name("A ResourceClaim in the job's namespace that all pods share."),
        "resourceClaimTemplateName": formats.object_name(
            "A ResourceClaimTemplate in the job's namespace; each pod gets its own claim."
        ),
    }
    return record(
        "A claim.",
        {"name": string("The name of the claim in the pod.", 63, least=1, pattern=formats.LABEL), **sources},
        required=["name"],
        rules=[
            exactly_one(sources, f"give exactly one of {', '.join(sources)}"),
            Rule(
                "self.name != 'accelerators'",
                "is reserved for the accelerators of the pool; use another name",
                lambda claim: claim["name"] != "accelerators",
                field="name",
            ),
        ],
    )


def env_var() -> Schema:
    """An EnvVar; pools have them too."""
    owned = " || ".join(f"self.name.startsWith('{prefix}')" for prefix in OWNED_ENV)
    return record(
        "A variable with value or valueFrom; empty without them.",
        {
            "name": string("The variable's name.", 253, least=1, pattern=formats.ENV_NAME),
            "value": string("The value; $(NAME) is replaced by the value of an earlier variable.", 32768),
            "valueFrom": _value_from(),
        },
        required=["name"],
        rules=[
            Rule(
                "!has(self.value) || !has(self.valueFrom)",
                "give value or valueFrom, not both",
                lambda var: not ("value" in var and "valueFrom" in var),
                field="valueFrom",
            ),
            Rule(
                f"!({owned})",
                "is set by the operator (PET_*, TRAINWRIGHT_*, KUBEFLOW_TRAINER_SERVER_*); use another name",
                lambda var: not var["name"].startswith(OWNED_ENV),
                field="name",
            ),
        ],
    )


def _value_from() -> Schema:
    resource_names = [
        f"{kind}.{name}" for kind in ("limits", "requests") for name in ("cpu", "memory", "ephemeral-storage")
    ]
    sources = {
        "secretKeyRef": _key_of("Secret"),
        "configMapKeyRef": _key_of("ConfigMap"),
        "fieldRef": record(
            "A field of the pod.",
            {
                "apiVersion": string("The version of the path. Default: v1.", among=["v1"]),
                "fieldPath": string(
                    "The field, such as metadata.name or status.hostIP.", 512, least=1, pattern=formats.NO_SPACE
                ),
            },
            required=["fieldPath"],
        ),
        "resourceFieldRef": record(
            "A resource of the trainer container.",
            {
                "resource": string("The resource.", among=resource_names),
                "divisor": formats.quantity("The unit. Default: 1."),
            },
            required=["resource"],
        ),
    }
    one = exactly_one(sources, f"give exactly one of {', '.join(sources)}")
    return record("Where the value comes from.", sources, rules=[one])


def _key_of(kind: str) -> Schema:
    return record(
        f"A key of a {kind} in the job's namespace.",
        {
            "name": formats.object_name(f"The {kind}'s name."),
            "key": formats.config_key("The key."),
            "optional": boolean(f"Start even if the {kind} or the key does not exist. Default: false."),
        },
        required=["name", "key"],
    )


def _env_source() -> Schema:
    def reference(kind: str) -> Schema:
        return record(
            f"A {kind} in the job's namespace.",
            {
                "name": formats.object_name(f"The {kind}'s name."),
                "optional": boolean("Start even if it does not exist. Default: false."),
            },
            required=["name"],
        )

    return record(
        "A ConfigMap or a Secret.",
        {
            "prefix": string("Prefix of every variable.", 253, pattern=formats.ENV_NAME),
            "configMapRef": reference("ConfigMap"),
            "secretRef": reference("Secret"),
        },
        rules=[exactly_one(["configMapRef", "secretRef"], "give exactly one of configMapRef, secretRef")],
    )


def mount() -> Schema:
    """A VolumeMount; pools have them too."""
    owned = ", ".join(f"'{path}'" for path in OWNED_MOUNTS)
    return record(
        "A mount.",
        {
            "name": string("The volume's name.", 63, least=1, pattern=formats.LABEL),
            "mountPath": string("The path in the container.", 1024, least=1, pattern=formats.ABSOLUTE_PATH),
            "subPath": string(
                "Mount this folder of the volume. Default: the root.", 1024, pattern=formats.RELATIVE_PATH
            ),
            "readOnly": boolean("Mount it read-only. Default: false."),
        },
        required=["name", "mountPath"],
        rules=[
            Rule(
                f"!(self.mountPath in [{owned}])",
                "/output and /etc/trainwright are reserved for the operator; mount it elsewhere",
                lambda mount: mount["mountPath"] not in OWNED_MOUNTS,
                field="mountPath",
            )
        ],
    )


def toleration() -> Schema:
    """A Toleration; pools have them too."""
    return record(
        "A toleration: the taint it matches. Without a key, and with operator Exists, it matches every taint.",
        {
            "key": string("The taint's key.", 317, pattern=formats.QUALIFIED),
            "operator": string("How the value is compared. Default: Equal.", among=["Exists", "Equal"]),
            "value": string("The taint's value, with operator Equal.", 63, pattern=formats.LABEL_VALUE),
            "effect": string(
                "The taint's effect. Default: every effect.", among=["NoSchedule", "PreferNoSchedule", "NoExecute"]
            ),
            "tolerationSeconds": integer("How long a NoExecute taint is tolerated. Default: forever.", 0, INT64_MAX),
        },
        rules=[
            Rule(
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "give a key, or set operator: Exists",
                lambda toleration: "key" in toleration or toleration.get("operator") == "Exists",
                field="operator",
            ),
            Rule(
                "!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
                "operator Exists takes no value; remove it",
                lambda toleration: "value" not in toleration or toleration.get("operator", "Equal") == "Equal",
                field="value",
            ),
            Rule(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "needs effect: NoExecute",
                lambda toleration: "tolerationSeconds" not in toleration or toleration.get("effect") == "NoExecute",
                field="tolerationSeconds",
            ),
        ],
    )
