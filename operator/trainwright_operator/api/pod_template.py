"""What a pod needs besides: the narrow, typed subset of a PodTemplateSpec that a TrainingJob carries.

Everything here keeps Kubernetes' own names and shapes, so that what a user knows of pods holds. The plan merges it into
the pods it builds; what the plan owns (command, ports, restart policy, probes) is not here to be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PodTemplate:
    """``spec.podTemplate``; lists hold Kubernetes' own objects (EnvVar, Volume, Toleration, ...) as plain dicts."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[dict[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    env: tuple[dict[str, Any], ...] = ()
    env_from: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    service_account_name: str | None = None
    priority_class_name: str | None = None
    scheduler_name: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    resource_claims: tuple[dict[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    spread: tuple[dict[str, Any], ...] = ()
    init_containers: tuple[dict[str, Any], ...] = ()
    sidecars: tuple[dict[str, Any], ...] = ()
    dns_config: Mapping[str, Any] | None = None
    runtime_class: str | None = None
    host_network: bool = False

    @staticmethod
    def of(data: Mapping[str, Any]) -> PodTemplate:
        """Read a checked ``spec.podTemplate``."""
        metadata = data.get("metadata") or {}
        return PodTemplate(
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            image=data.get("image"),
            image_pull_policy=data.get("imagePullPolicy"),
            image_pull_secrets=tuple(data.get("imagePullSecrets") or ()),
            resources=data.get("resources") or {},
            env=tuple(data.get("env") or ()),
            env_from=tuple(data.get("envFrom") or ()),
            volumes=tuple(data.get("volumes") or ()),
            volume_mounts=tuple(data.get("volumeMounts") or ()),
            service_account_name=data.get("serviceAccountName"),
            priority_class_name=data.get("priorityClassName"),
            scheduler_name=data.get("schedulerName"),
            node_selector=data.get("nodeSelector") or {},
            tolerations=tuple(data.get("tolerations") or ()),
            resource_claims=tuple(data.get("resourceClaims") or ()),
            affinity=data.get("affinity") or {},
            spread=tuple(data.get("topologySpreadConstraints") or ()),
            init_containers=tuple(data.get("initContainers") or ()),
            sidecars=tuple(data.get("sidecars") or ()),
            dns_config=data.get("dnsConfig"),
            runtime_class=data.get("runtimeClassName"),
            host_network=data.get("hostNetwork", False),
        )
