"""Nodes that say they have accelerators: pods that ask for them are scheduled there, and run on CPUs."""

from __future__ import annotations

from cluster.kube import Kube

VENDORS = {
    "nvidia.com/gpu": {
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
    },
    "amd.com/gpu": {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.family": "AI"},
    "google.com/tpu": {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    },
}
"""The labels that each vendor's own tools give a node."""


def advertise(kube: Kube, node: str, resource: str, count: int, labels: dict[str, str] | None = None) -> None:
    """Let a real node offer ``count`` of an extended resource, with its vendor's labels and taint."""
    amount = {resource: str(count)}
    kube.patch("Node", node, {"status": {"capacity": amount, "allocatable": amount}}, namespace=None, sub="status")
    taint = {"key": resource, "value": "present", "effect": "NoSchedule"}
    metadata = {"labels": {**VENDORS.get(resource, {}), **(labels or {})}}
    kube.patch("Node", node, {"metadata": metadata, "spec": {"taints": [taint]}}, namespace=None)


def withdraw(kube: Kube, node: str, resource: str, labels: dict[str, str] | None = None) -> None:
    """Undo :func:`advertise`."""
    nothing = {resource: None}
    kube.patch("Node", node, {"status": {"capacity": nothing, "allocatable": nothing}}, namespace=None, sub="status")
    gone = dict.fromkeys({**VENDORS.get(resource, {}), **(labels or {})})
    kube.patch("Node", node, {"metadata": {"labels": gone}, "spec": {"taints": None}}, namespace=None)
