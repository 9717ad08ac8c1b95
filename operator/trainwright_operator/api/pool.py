"""Declares ``spec`` of an AcceleratorPool, in which an administrator describes a node pool once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from trainwright_operator.api import formats
from trainwright_operator.api.declare import Default, Missing
from trainwright_operator.api.pods import env_var, mount, mounts_have_volumes, toleration
from trainwright_operator.api.topology import GENERATIONS, LABEL_TOPOLOGY, Generation, arithmetic, axes
from trainwright_operator.api.types import (
    Pattern,
    Rule,
    Schema,
    boolean,
    integer,
    list_of,
    map_of,
    number,
    record,
    string,
)
from trainwright_operator.api.volumes import volume

VENDORS = ("cpu", "nvidia", "amd", "tpu")
TPU_RUNTIMES = ("torchtpu", "torch_xla")
TPU_FIELDS = ("topology", "chipsPerHost", "slices", "generation")

TOPOLOGY = Pattern(
    r"^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?$", "write the chips along each axis, such as 4x4 or 4x4x4"
)

CURRENCY = Pattern(r"^[A-Z]{3}$", "write three capital letters, such as USD or EUR")


def price() -> Schema:
    return record(
        "What an accelerator of the pool costs; jobs show their cost in status.cost.",
        {
            "perAcceleratorHour": number("The price of one accelerator for one hour.", least=0, most=1_000_000),
            "currency": string("The currency, as in ISO 4217.", 3, pattern=CURRENCY),
        },
        required={
            "perAcceleratorHour": "is missing: give the price of one accelerator for one hour, such as 2.5",
            "currency": "is missing: a price needs its currency, such as USD or EUR",
        },
    )


@dataclass(frozen=True)
class AcceleratorPool:
    """A pool of identical nodes. Jobs name a pool, and it determines everything that depends on the hardware."""

    name: str
    vendor: Annotated[
        str,
        string("The vendor of the accelerators; determines resource, launcher and environment.", among=VENDORS),
        Missing("is missing: give the accelerators of the nodes: cpu, nvidia, amd or tpu"),
    ]
    resource_name: Annotated[
        str | None,
        string("The resource that a pod requests, such as nvidia.com/mig-1g.5gb.", 317, pattern=formats.QUALIFIED),
        Default("by vendor nvidia.com/gpu, amd.com/gpu or google.com/tpu"),
    ] = None
    per_node: Annotated[
        int | None,
        integer("Accelerators in each node: the default and the maximum of a job's perNode.", 1, 64),
        Default("1"),
    ] = None
    memory_per_accelerator: Annotated[
        str | None,
        formats.quantity("Memory of each accelerator, such as 80Gi, for plan --memory and describe."),
        Default("that of the product in nodeSelector, if it is known"),
    ] = None
    node_selector: Annotated[Mapping[str, str], formats.label_map("Labels that only the nodes of the pool have.")] = (
        field(default_factory=dict)
    )
    tolerations: Annotated[
        tuple[dict[str, Any], ...],
        list_of("Taints of the pool's nodes that the pods tolerate.", toleration(), 32),
    ] = ()
    image: Annotated[
        str | None,
        string("The trainer image for this pool.", 1024, least=1, pattern=formats.NO_SPACE),
        Default("this release's image for the vendor"),
    ] = None
    env: Annotated[
        tuple[dict[str, Any], ...],
        list_of(
            "Environment variables of every trainer on the pool, such as NCCL_SOCKET_IFNAME.", env_var(), 64, key="name"
        ),
    ] = ()
    runtime: Annotated[
        str | None,
        string(
            "The launcher of the ranks: torchrun; on a TPU torchtpu or torch_xla.", among=["torchrun", *TPU_RUNTIMES]
        ),
        Default("torchrun or torchtpu"),
    ] = None
    generation: Annotated[
        str | None,
        string(
            "TPU: the generation of the chips; sets GKE's label cloud.google.com/gke-tpu-accelerator.",
            among=GENERATIONS,
        ),
        Default("from that label in nodeSelector"),
    ] = None
    topology: Annotated[
        str | None,
        string(
            "TPU: the chips of a slice along each axis, such as 4x4 or 4x4x4; sets GKE's label "
            "cloud.google.com/gke-tpu-topology.",
            14,
            pattern=TOPOLOGY,
        ),
    ] = None
    chips_per_host: Annotated[
        int | None, integer("TPU: the chips in one host; the same topology can have one host or several.", 1, 8)
    ] = None
    slices: Annotated[
        int, integer("TPU: the slices that a job uses together, connected by the data-center network.", 1, 64)
    ] = 1
    shm_size: Annotated[
        str | None,
        formats.quantity(
            "Size of /dev/shm, which holds buffers of NCCL and the data loader; it counts as memory of the container."
        ),
        Default("half of the job's memory limit; without a limit, half of the node's memory"),
    ] = None
    rdma_resources: Annotated[
        Mapping[str, Any],
        map_of(
            "RDMA resources of each pod, such as rdma/ib: 8. They need IPC_LOCK, which restricted namespaces forbid.",
            formats.quantity("The amount."),
            8,
        ),
    ] = field(default_factory=dict)
    device_class_name: Annotated[
        str | None,
        formats.object_name(
            "Request the accelerators by Dynamic Resource Allocation, as devices of this DeviceClass, such as "
            "gpu.nvidia.com."
        ),
        Default("by resourceName"),
    ] = None
    device_selectors: Annotated[
        tuple[str, ...],
        list_of(
            "CEL expressions over a device, all of which must hold, such as "
            "device.attributes['gpu.nvidia.com'].productName == 'NVIDIA H100 80GB HBM3'.",
            string("An expression.", 4096, least=1),
            8,
        ),
    ] = ()
    quota_resource: Annotated[
        str | None,
        string(
            "The resource that a queue counts the devices of deviceClassName as, such as example.com/gpu: that of "
            "Kueue's deviceClassMappings, or one of its own.",
            317,
            pattern=formats.QUALIFIED,
        ),
        Default("they are not counted"),
    ] = None
    runtime_class_name: Annotated[
        str | None, formats.object_name("The RuntimeClass of the pods, such as nvidia."), Default("the node's")
    ] = None
    scheduler_name: Annotated[
        str | None,
        formats.object_name("The scheduler of the pods, such as volcano or kai-scheduler; a job's own goes before it."),
        Default("default-scheduler"),
    ] = None
    allow_host_network: Annotated[bool, boolean("Whether jobs may use the host network (podTemplate.hostNetwork).")] = (
        False
    )
    supplemental_groups: Annotated[
        tuple[int, ...],
        list_of(
            "Groups that may open the devices, such as those of render and video on AMD nodes.",
            integer("A group ID."),
            16,
        ),
    ] = ()
    pod_annotations: Annotated[
        Mapping[str, str],
        map_of(
            "Annotations for every pod, such as networking.gke.io/interfaces or k8s.v1.cni.cncf.io/networks.",
            string("The annotation's value.", 16384),
            32,
        ),
    ] = field(default_factory=dict)
    volumes: Annotated[
        tuple[dict[str, Any], ...],
        list_of("Volumes of every pod, such as a node's NCCL plugin.", volume(), 16, key="name"),
    ] = ()
    volume_mounts: Annotated[
        tuple[dict[str, Any], ...],
        list_of("Where the volumes are mounted in the trainer.", mount(), 16, key="mountPath"),
    ] = ()
    price: Annotated[Mapping[str, Any] | None, price()] = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The annotations of the object's metadata."""

    @staticmethod
    def rules() -> list[Rule]:
        return [
            *(_for_tpu(name) for name in TPU_FIELDS),
            *(_required_for_tpu(name) for name in ("topology", "chipsPerHost")),
            Rule(
                "!has(self.runtime) || (self.vendor == 'tpu') == (self.runtime != 'torchrun')",
                "vendor tpu takes torchtpu or torch_xla, every other vendor torchrun",
                lambda pool: "runtime" not in pool or (pool["vendor"] == "tpu") == (pool["runtime"] != "torchrun"),
                field="runtime",
                needs=("vendor", "runtime"),
            ),
            *_shape(),
            *_ways_to_devices(),
            mounts_have_volumes("spec.volumes"),
        ]


def _for_tpu(name: str) -> Rule:
    return Rule(
        f"!has(self.{name}) || self.vendor == 'tpu'",
        "is only for vendor tpu; remove it",
        lambda pool: name not in pool or pool["vendor"] == "tpu",
        field=name,
        needs=("vendor",),
    )


def _required_for_tpu(name: str) -> Rule:
    return Rule(
        f"self.vendor != 'tpu' || has(self.{name})",
        "is missing: a tpu pool needs the topology and chipsPerHost that the node pool was created with",
        lambda pool: pool["vendor"] != "tpu" or name in pool,
        field=name,
        needs=("vendor",),
    )


_PARTS = "self.topology.split('x')"
_CHIPS = f"int({_PARTS}[0]) * int({_PARTS}[1]) * (size({_PARTS}) == 3 ? int({_PARTS}[2]) : 1)"


def _shape() -> list[Rule]:
    whole = Rule(
        f"!has(self.topology) || !has(self.chipsPerHost) || "
        f"{_CHIPS} <= self.chipsPerHost || ({_CHIPS}) % self.chipsPerHost == 0",
        "the chips of the topology do not fill whole hosts; correct topology or chipsPerHost",
        lambda pool: _fills_hosts(pool.get("topology"), pool.get("chipsPerHost")),
        field="topology",
        needs=("topology", "chipsPerHost"),
        message_with_values=(
            "'topology %s has %d chips, %d / %d per host = %d %s, remainder %d; correct topology or chipsPerHost'"
            f".format([self.topology, {_CHIPS}, {_CHIPS}, self.chipsPerHost, ({_CHIPS}) / self.chipsPerHost, "
            f"({_CHIPS}) / self.chipsPerHost == 1 ? 'host' : 'hosts', ({_CHIPS}) % self.chipsPerHost])",
            lambda pool: arithmetic(pool["topology"], pool["chipsPerHost"]),
        ),
    )
    stated = f"has(self.nodeSelector) && '{LABEL_TOPOLOGY}' in self.nodeSelector"
    label = Rule(
        f"!has(self.topology) || !({stated}) || self.nodeSelector['{LABEL_TOPOLOGY}'] == self.topology",
        f"has a {LABEL_TOPOLOGY} that differs from topology; remove the label, topology sets it",
        lambda pool: pool.get("nodeSelector", {}).get(LABEL_TOPOLOGY) in (None, pool.get("topology")),
        field="nodeSelector",
        needs=("topology", "nodeSelector"),
    )
    per_node = Rule(
        "!has(self.perNode) || self.vendor != 'tpu' || !has(self.chipsPerHost) || self.perNode == self.chipsPerHost",
        "a host of a tpu pool has chipsPerHost chips; remove perNode",
        lambda pool: pool["vendor"] != "tpu" or pool.get("perNode") in (None, pool.get("chipsPerHost")),
        field="perNode",
        needs=("vendor", "perNode", "chipsPerHost"),
    )
    generations = [rule for name, one in GENERATIONS.items() for rule in _generation(name, one)]
    return [whole, label, per_node, *generations]


def _fills_hosts(topology: str | None, chips_per_host: int | None) -> bool:
    if topology is None or chips_per_host is None:
        return True
    total = 1
    for axis in axes(topology):
        total *= axis
    return total <= chips_per_host or total % chips_per_host == 0


def _generation(name: str, known: Generation) -> list[Rule]:
    """Shapes that no machine of the generation has."""
    choices = ", ".join(map(str, known.chips_per_host))
    given = f"has(self.generation) && self.generation == '{name}'"

    def is_other(pool: Any) -> bool:
        return bool(pool.get("generation") != name)

    return [
        Rule(
            f"!({given} && has(self.chipsPerHost)) || self.chipsPerHost in [{choices}]",
            f"a host of {name} has {' or '.join(choices.rsplit(', ', 1))} chips",
            lambda pool: is_other(pool) or pool.get("chipsPerHost", known.chips_per_host[0]) in known.chips_per_host,
            field="chipsPerHost",
            needs=("generation", "chipsPerHost"),
        ),
        Rule(
            f"!({given} && has(self.topology)) || size({_PARTS}) == {known.axes}",
            f"the chips of {name} have {known.axes} axes, such as {'x'.join(['4'] * known.axes)}",
            lambda pool: is_other(pool) or "topology" not in pool or len(axes(pool["topology"])) == known.axes,
            field="topology",
            needs=("generation", "topology"),
        ),
    ]


def _ways_to_devices() -> list[Rule]:
    ours = ("resourceName", "deviceClassName")
    return [
        *(
            Rule(
                f"!has(self.{name}) || self.vendor != 'cpu'",
                "is for accelerators, which vendor cpu does not have; remove it",
                lambda pool, name=name: name not in pool or pool["vendor"] != "cpu",
                field=name,
                needs=("vendor",),
            )
            for name in ours
        ),
        Rule(
            "!has(self.resourceName) || !has(self.deviceClassName)",
            "give resourceName or deviceClassName, not both; remove one of them",
            lambda pool: not all(name in pool for name in ours),
            field="deviceClassName",
            needs=(),
        ),
        Rule(
            "!has(self.deviceSelectors) || has(self.deviceClassName)",
            "selects among the devices of deviceClassName; give deviceClassName too",
            lambda pool: "deviceSelectors" not in pool or "deviceClassName" in pool,
            field="deviceSelectors",
            needs=(),
        ),
        Rule(
            "!has(self.quotaResource) || has(self.deviceClassName)",
            "counts the devices of deviceClassName; remove it, others are counted as the resource that pods request",
            lambda pool: "quotaResource" not in pool or "deviceClassName" in pool,
            field="quotaResource",
            needs=(),
        ),
    ]
