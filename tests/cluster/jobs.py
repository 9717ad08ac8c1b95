"""Jobs as the tests need them."""

from __future__ import annotations

from typing import Any

SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def indexed_job(
    name: str,
    indexes: int = 2,
    annotations: dict[str, str] | None = None,
    container: dict[str, Any] | None = None,
    **pod: Any,
) -> dict[str, Any]:
    """An Indexed Job of the shape that a TrainingJob gets: no retry, no restart, allowed in a restricted namespace.

    ``container`` and ``pod`` are laid over the container's and the pod's spec.
    """
    main = {"name": "main", "image": "simulated", "securityContext": SECURITY, **(container or {})}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": indexes,
            "parallelism": indexes,
            "backoffLimit": 0,
            "template": {
                "metadata": {"annotations": annotations or {}},
                "spec": {"restartPolicy": "Never", "containers": [main], **pod},
            },
        },
    }


def spread(name: str) -> dict[str, Any]:
    """The affinity by which each pod of the Job goes to a node of its own."""
    selector = {"matchLabels": {"batch.kubernetes.io/job-name": name}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
