"""``spec`` of an AcceleratorPool: what an admin says once of a node pool."""

from __future__ import annotations

from trainwright_operator.openapi import words
from trainwright_operator.openapi.pods import env_var, toleration
from trainwright_operator.openapi.types import Pattern, Rule, Schema, integer, list_of, map_of, record, string

VENDORS = ("cpu", "nvidia", "amd", "tpu")
TPU_RUNTIMES = ("torchtpu", "torch_xla")

TOPOLOGY = Pattern(
    r"^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?$", "write the chips along each axis, such as 4x4 or 4x4x4"
)


def pool_spec() -> Schema:
    return record(
        "A pool of alike nodes. Jobs name it, and everything that depends on the hardware follows from it.",
        {
            "vendor": string("Who made the accelerators: chooses resource, launcher and environment.", among=VENDORS),
            "resourceName": string(
                "The resource a pod asks for, such as nvidia.com/mig-1g.5gb. Default: by vendor nvidia.com/gpu, "
                "amd.com/gpu or google.com/tpu.",
                317,
                pattern=words.QUALIFIED,
            ),
            "perNode": integer(
                "Accelerators in each node: what a job gets at most from one, and by default. Default: 1.", 1, 64
            ),
            "nodeSelector": words.label_map("Labels that the pool's nodes carry, and no others."),
            "tolerations": list_of("Taints of the pool's nodes that training tolerates.", toleration(), 32),
            "image": string(
                "The trainer image for this pool. Default: this release's image for the vendor.",
                1024,
                least=1,
                pattern=words.NO_SPACE,
            ),
            "env": list_of(
                "Environment of every trainer on the pool, such as NCCL_SOCKET_IFNAME.", env_var(), 64, key="name"
            ),
            "runtime": string(
                "What starts the ranks: torchrun; on a TPU torchtpu or torch_xla. Default: torchrun or torchtpu.",
                among=["torchrun", *TPU_RUNTIMES],
            ),
            "topology": string(
                "TPU: the chips of a slice along each axis, such as 4x4 or 4x4x4.", 14, pattern=TOPOLOGY
            ),
            "chipsPerHost": integer("TPU: the chips in one host; the same topology can be one host or two.", 1, 8),
            "slices": integer(
                "TPU: the slices that a job takes together over the data-centre network. Default: 1.", 1, 64
            ),
            "shmSize": words.quantity(
                "Size of /dev/shm, which holds NCCL's and the data loader's buffers. Default: half the memory."
            ),
            "rdmaResources": map_of(
                "RDMA resources of each pod, such as rdma/ib: 8. They need IPC_LOCK: no restricted namespace.",
                words.quantity("How many."),
                8,
            ),
        },
        required={"vendor": "is missing: say which accelerators the nodes have: cpu, nvidia, amd or tpu"},
        rules=_rules(),
    )


def _rules() -> list[Rule]:
    tpu_fields = ("topology", "chipsPerHost", "slices")
    return [
        *(
            Rule(
                f"!has(self.{name}) || self.vendor == 'tpu'",
                "is for vendor tpu alone; remove it",
                lambda pool, name=name: name not in pool or pool["vendor"] == "tpu",
                field=name,
            )
            for name in tpu_fields
        ),
        *(
            Rule(
                f"self.vendor != 'tpu' || has(self.{name})",
                "is missing: a tpu pool states topology and chipsPerHost, as the node pool was made with",
                lambda pool, name=name: pool["vendor"] != "tpu" or name in pool,
                field=name,
            )
            for name in ("topology", "chipsPerHost")
        ),
        Rule(
            "!has(self.runtime) || (self.vendor == 'tpu') == (self.runtime != 'torchrun')",
            "vendor tpu takes torchtpu or torch_xla, every other vendor torchrun",
            lambda pool: "runtime" not in pool or (pool["vendor"] == "tpu") == (pool["runtime"] != "torchrun"),
            field="runtime",
        ),
    ]
