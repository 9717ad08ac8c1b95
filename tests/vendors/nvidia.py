"""NVIDIA's GPUs, whole, in part, and as MIG profiles: pools, what jobs get on them, and what is refused."""

from __future__ import annotations

from typing import Any

from vendors import Case

NVIDIA = "nvidia.com/gpu"

POOLS: dict[str, dict[str, Any]] = {
    "h100": {
        "vendor": "nvidia",
        "perNode": 8,
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "shmSize": "64Gi",
        "rdmaResources": {"rdma/ib": 8},
        "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
    },
    "h100-gke": {
        "vendor": "nvidia",
        "perNode": 8,
        "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"},
    },
    "mig": {
        "vendor": "nvidia",
        "resourceName": "nvidia.com/mig-1g.10gb",
        "perNode": 7,
        "nodeSelector": {"nvidia.com/mig.strategy": "mixed"},
    },
}

H100 = POOLS["h100"]["nodeSelector"]
CASES: dict[str, Case] = {
    "nvidia, whole nodes": Case(
        *("h100", 2, None, 2, 8, {NVIDIA: "8", "rdma/ib": 8}, H100, NVIDIA),
        first={"NCCL_IB_HCA": "mlx5", "TRAINWRIGHT_VENDOR": "nvidia", "TRAINWRIGHT_RUNTIME": "torchrun"},
        last={"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "gpt-corpus-0-1-0.tj-gpt-corpus"},
        image="nvidia",
    ),
    "nvidia, a part of a node": Case(
        *("h100-gke", 1, 2, 1, 2, {NVIDIA: "2"}, POOLS["h100-gke"]["nodeSelector"], NVIDIA), image="nvidia"
    ),
    "nvidia, a MIG profile": Case(
        *("mig", 2, 1, 2, 1, {"nvidia.com/mig-1g.10gb": "1"}, POOLS["mig"]["nodeSelector"], NVIDIA), image="nvidia"
    ),
}

REFUSALS: dict[str, tuple[str, dict[str, int], str]] = {
    "more GPUs than a node has": (
        "h100",
        {"perNode": 16},
        "spec.accelerator.perNode: 16 is more than pool 'h100' has in a node (8)",
    ),
}

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "two ways to devices": (
        "mig",
        {"deviceClassName": "mig.nvidia.com"},
        "spec.deviceClassName: give resourceName or deviceClassName, not both; remove one of them",
    ),
    "selectors of nothing": (
        "h100",
        {"deviceSelectors": ["true"]},
        "spec.deviceSelectors: selects among the devices of deviceClassName; give deviceClassName too",
    ),
    "a quota of no claims": (
        "h100",
        {"quotaResource": "example.com/gpu"},
        "spec.quotaResource: counts the devices of deviceClassName; remove it, others are counted as the resource that "
        "pods request",
    ),
    "a mount of nothing": (
        "h100",
        {"volumeMounts": [{"name": "gib", "mountPath": "/usr/local/gib"}]},
        "spec.volumeMounts: every mount must name one of spec.volumes; add the volume",
    ),
}
