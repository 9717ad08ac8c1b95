"""Pools as their admins write them, and what becomes of a job on each: the table that several tests read.

A case is a pool, the nodes and accelerators that a job asks for, and what every pod must then have. ``env`` is of the
first and the last pod, where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainwright_operator.api import names

NVIDIA, AMD, TPU = "nvidia.com/gpu", "amd.com/gpu", "google.com/tpu"
GKE_TPU, GKE_TOPOLOGY = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"

POOLS: dict[str, dict[str, Any]] = {
    "cpu-8": {"vendor": "cpu", "perNode": 8},
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
    "mi300x": {
        "vendor": "amd",
        "perNode": 8,
        "nodeSelector": {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"},
        "supplementalGroups": [44, 110],
    },
    "mi300x-cpx": {"vendor": "amd", "resourceName": "amd.com/cpx_nps4", "perNode": 64},
    "v5e-8": {"vendor": "tpu", "generation": "v5e", "topology": "2x4", "chipsPerHost": 8},
    "v5e-2x4-of-4": {"vendor": "tpu", "generation": "v5e", "topology": "2x4", "chipsPerHost": 4},
    "v5p-32": {"vendor": "tpu", "generation": "v5p", "topology": "2x2x4", "chipsPerHost": 4},
    "v6e-16": {"vendor": "tpu", "topology": "4x4", "chipsPerHost": 4, "nodeSelector": {GKE_TPU: "tpu-v6e-slice"}},
    "v6e-8-xla": {
        "vendor": "tpu",
        "generation": "v6e",
        "topology": "2x4",
        "chipsPerHost": 8,
        "runtime": "torch_xla",
    },
    "v6e-16-xla": {
        "vendor": "tpu",
        "generation": "v6e",
        "topology": "4x4",
        "chipsPerHost": 4,
        "runtime": "torch_xla",
    },
    "v6e-2x16": {"vendor": "tpu", "generation": "v6e", "topology": "4x4", "chipsPerHost": 4, "slices": 2},
    "v7x-4": {"vendor": "tpu", "generation": "v7x", "topology": "2x2x1", "chipsPerHost": 4},
}


@dataclass(frozen=True)
class Case:
    """``ranks`` are those of a pod; ``first`` and ``last`` what the environment of these two pods has."""

    pool: str
    nodes: int | None
    per_node: int | None
    pods: int
    ranks: int
    resources: dict[str, str] = field(default_factory=dict)
    selector: dict[str, str] = field(default_factory=dict)
    toleration: str | None = None
    first: dict[str, str] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    image: str = "cpu"


def _tpu(accelerator: str, topology: str) -> dict[str, str]:
    return {GKE_TPU: accelerator, GKE_TOPOLOGY: topology}


def hosts(count: int, slice_: int = 0) -> str:
    return ",".join(f"gpt-corpus-{slice_}-1-{index}.tj-gpt-corpus" for index in range(count))


H100 = POOLS["h100"]["nodeSelector"]
MI300X = POOLS["mi300x"]["nodeSelector"]
HSA = {"HSA_FORCE_FINE_GRAIN_PCIE": "1"}
CASES: dict[str, Case] = {
    "cpu, one rank": Case("cpu", None, None, 1, 1, {"cpu": "1"}),
    "cpu, 2 nodes of 4": Case("cpu-8", 2, 4, 2, 4, {"cpu": "4"}, last={"PET_NODE_RANK": "1", "PET_NNODES": "2"}),
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
    "amd, whole nodes": Case("mi300x", 2, None, 2, 8, {AMD: "8"}, MI300X, AMD, first=HSA, last=HSA, image="amd"),
    "amd, partitions": Case("mi300x-cpx", 1, 8, 1, 8, {"amd.com/cpx_nps4": "8"}, {}, AMD, first=HSA, image="amd"),
    "tpu v5e, one host": Case(
        *("v5e-8", None, None, 1, 8, {TPU: "8"}, _tpu("tpu-v5-lite-podslice", "2x4"), TPU),
        first={"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost", "TORCH_TPU_TOPOLOGY": "2,4,1"},
        image="tpu",
    ),
    "tpu v5e, the same topology on two hosts": Case(
        *("v5e-2x4-of-4", 2, 4, 2, 4, {TPU: "4"}, _tpu("tpu-v5-lite-podslice", "2x4"), TPU),
        last={"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": hosts(2), "TORCH_TPU_TOPOLOGY": "2,4,1"},
        image="tpu",
    ),
    "tpu v5p, three axes": Case(
        *("v5p-32", None, None, 4, 4, {TPU: "4"}, _tpu("tpu-v5p-slice", "2x2x4"), TPU),
        last={"TPU_WORKER_ID": "3", "TORCH_TPU_TOPOLOGY": "2,2,4", "JOB_COMPLETION_INDEX": "3", "NODE_RANK": "3"},
        image="tpu",
    ),
    "tpu v6e, TorchTPU": Case(
        *("v6e-16", 4, 4, 4, 4, {TPU: "4"}, _tpu("tpu-v6e-slice", "4x4"), TPU),
        first={"TRAINWRIGHT_RUNTIME": "torchtpu", "TORCH_TPU_TOPOLOGY": "4,4,1", "TPU_WORKER_HOSTNAMES": hosts(4)},
        last={"TPU_WORKER_ID": "3", "PET_NODE_RANK": "3", "JOB_COMPLETION_INDEX": "3"},
        image="tpu",
    ),
    "tpu v6e, PyTorch/XLA": Case(
        *("v6e-8-xla", None, None, 1, 1, {TPU: "8"}, _tpu("tpu-v6e-slice", "2x4"), TPU),
        first={"TRAINWRIGHT_RUNTIME": "torch_xla", "PJRT_DEVICE": "TPU", "TPU_WORKER_ID": "0"},
        last={"TPU_WORKER_HOSTNAMES": "localhost", "PET_NPROC_PER_NODE": "1"},
        image="tpu-xla",
    ),
    "tpu v6e, two slices": Case(
        *("v6e-2x16", 8, None, 8, 4, {TPU: "4"}, _tpu("tpu-v6e-slice", "4x4"), TPU),
        first={
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": "0",
            "MEGASCALE_COORDINATOR_ADDRESS": "gpt-corpus-0-1-0.tj-gpt-corpus:8080",
            "MEGASCALE_PORT": "8080",
            "TPU_WORKER_HOSTNAMES": hosts(4),
            "PET_NNODES": "8",
            "TRAINWRIGHT_FIRST_NODE_RANK": "0",
        },
        last={
            "MEGASCALE_SLICE_ID": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "gpt-corpus-0-1-0.tj-gpt-corpus:8080",
            "TPU_WORKER_ID": "3",
            "TPU_WORKER_HOSTNAMES": hosts(4, 1),
            "PET_NODE_RANK": "3",
            "TRAINWRIGHT_FIRST_NODE_RANK": "4",
            "PET_MASTER_ADDR": "gpt-corpus-0-1-0.tj-gpt-corpus",
        },
        jobs=2,
        image="tpu",
    ),
    "tpu v7x, two devices to a chip": Case(
        *("v7x-4", None, None, 1, 8, {TPU: "4"}, _tpu("tpu7x", "2x2x1"), TPU),
        first={"TORCH_TPU_TOPOLOGY": "2,2,1,2", "PET_NPROC_PER_NODE": "8"},
        image="tpu",
    ),
}

RESOURCES: dict[str, tuple[dict[str, dict[str, Any]], str | None]] = {
    # podTemplate.resources, and what is wrong with them for an API server
    "none": ({}, None),
    "requests alone": ({"requests": {"cpu": 2, "memory": "1Gi", "ephemeral-storage": "1G"}}, None),
    "as much as the limit, in another unit": ({"requests": {"cpu": "500m"}, "limits": {"cpu": "0.5"}}, None),
    "less than the limit": ({"requests": {"memory": "1000Mi"}, "limits": {"memory": "1Gi"}}, None),
    "more than the limit": (
        {"requests": {"memory": "8Gi"}, "limits": {"memory": "4Gi"}},
        "requests: memory is 8Gi, over its limit of 4Gi; lower it, or raise the limit",
    ),
    "a little more than the limit": (
        {"requests": {"cpu": "1001m"}, "limits": {"cpu": 1}},
        "requests: cpu is 1001m, over its limit of 1; lower it, or raise the limit",
    ),
    "over a limit of nothing": (
        {"requests": {"cpu": 1}, "limits": {"cpu": 0}},
        "requests: cpu is 1, over its limit of 0; lower it, or raise the limit",
    ),
    "a device": ({"limits": {"example.com/nic": 1}}, None),
    "a device asked for alone": (
        {"requests": {"example.com/nic": 1}},
        "limits: example.com/nic has a request alone, and takes the same amount as its limit",
    ),
    "fewer devices than the limit": (
        {"requests": {"example.com/nic": 1}, "limits": {"example.com/nic": 2}},
        "requests: example.com/nic must be as much as its limit, 2; 1 asked",
    ),
    "huge pages": ({"limits": {"hugepages-2Mi": "64Mi", "cpu": 1}}, None),
    "huge pages asked for alone": (
        {"requests": {"hugepages-2Mi": "64Mi", "cpu": 1}},
        "limits: hugepages-2Mi has a request alone, and takes the same amount as its limit",
    ),
    "a word that is no resource": (
        {"limits": {"gpu": 1}},
        ": gpu is no resource of a container; it is one of cpu, memory, ephemeral-storage, or VENDOR/NAME",
    ),
}

REFUSALS: dict[str, tuple[str, dict[str, int], str]] = {
    "hosts that the topology does not have": (
        "v6e-16",
        {"nodes": 3},
        "spec.accelerator.nodes: topology 4x4 has 16 chips, 16 / 4 per host = 4 hosts; nodes: 3 asked",
    ),
    "hosts of one slice where there are two": (
        "v6e-2x16",
        {"nodes": 4},
        "spec.accelerator.nodes: topology 4x4 has 16 chips, 16 / 4 per host = 4 hosts, x 2 slices = 8 hosts; "
        "nodes: 4 asked",
    ),
    "a part of a TPU host": (
        "v6e-16",
        {"perNode": 2},
        "spec.accelerator.perNode: a pod takes a whole host, and a host of pool 'v6e-16' has 4 chips; perNode: 2 asked",
    ),
    "several hosts with PyTorch/XLA": (
        "v6e-16-xla",
        {},
        "spec.accelerator.pool: 'v6e-16-xla' has 4 hosts, and the Trainer drives one with torch_xla; choose a pool of "
        "one host, or of runtime torchtpu",
    ),
    "more GPUs than a node has": (
        "h100",
        {"perNode": 16},
        "spec.accelerator.perNode: 16 is more than pool 'h100' has in a node (8)",
    ),
}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "chips left over": (
        "v6e-16",
        {"topology": "4x4", "chipsPerHost": 3, "generation": None},
        "spec.topology: topology 4x4 has 16 chips, 16 / 3 per host = 5 hosts, remainder 1; "
        "correct topology or chipsPerHost",
    ),
    "a host that is not built": ("v5p-32", {"chipsPerHost": 8}, "spec.chipsPerHost: a host of v5p has 4 chips"),
    "two axes of three": ("v5p-32", {"topology": "4x4"}, "spec.topology: the chips of v5p have 3 axes, such as 4x4x4"),
    "another topology in the label": (
        "v6e-16",
        {"nodeSelector": {"cloud.google.com/gke-tpu-topology": "2x4"}},
        "spec.nodeSelector: says another cloud.google.com/gke-tpu-topology than topology; remove it, for topology "
        "gives that label",
    ),
    "a TPU's nodes by perNode": (
        "v6e-16",
        {"perNode": 8},
        "spec.perNode: a host of a tpu pool has chipsPerHost chips; remove perNode",
    ),
    "two ways to devices": (
        "mig",
        {"deviceClassName": "mig.nvidia.com"},
        "spec.deviceClassName: accelerators come by resourceName or by deviceClassName; remove one of them",
    ),
    "selectors of nothing": (
        "h100",
        {"deviceSelectors": ["true"]},
        "spec.deviceSelectors: selects among the devices of deviceClassName; give that too",
    ),
    "a mount of nothing": (
        "h100",
        {"volumeMounts": [{"name": "gib", "mountPath": "/usr/local/gib"}]},
        "spec.volumeMounts: every mount names one of spec.volumes; add the volume",
    ),
}
"""Pools that cannot be: one of the table, what is changed of it, and the whole of what its author is told."""


def pool_manifest(name: str, **spec: Any) -> dict[str, Any]:
    """A pool of the table, or one of another spec; what is None is left out."""
    content = {"apiVersion": names.API_VERSION, "kind": names.POOL_KIND, "metadata": {"name": name}}
    stated = {**POOLS.get(name, {}), **spec}
    return {**content, "spec": {key: value for key, value in stated.items() if value is not None}}


def environment(pod_spec: dict[str, Any], index: int) -> dict[str, str]:
    """The environment of the pod of that completion index."""
    variables = pod_spec["containers"][0]["env"]
    return {
        one["name"]: one.get("value", str(index) if "fieldRef" in one.get("valueFrom", {}) else "") for one in variables
    }
