"""Google's TPUs, slices of one host and of several, both runtimes: pools, jobs on them, and what is refused."""

from __future__ import annotations

from typing import Any

from vendors import Case

TPU = "google.com/tpu"
GKE_TPU, GKE_TOPOLOGY = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"

POOLS: dict[str, dict[str, Any]] = {
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


def _tpu(accelerator: str, topology: str) -> dict[str, str]:
    return {GKE_TPU: accelerator, GKE_TOPOLOGY: topology}


def hosts(count: int, slice_: int = 0) -> str:
    return ",".join(f"gpt-corpus-{slice_}-1-{index}.tj-gpt-corpus" for index in range(count))


CASES: dict[str, Case] = {
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
        "spec.nodeSelector: has a cloud.google.com/gke-tpu-topology that differs from topology; remove the label, "
        "topology sets it",
    ),
    "a TPU's nodes by perNode": (
        "v6e-16",
        {"perNode": 8},
        "spec.perNode: a host of a tpu pool has chipsPerHost chips; remove perNode",
    ),
}
