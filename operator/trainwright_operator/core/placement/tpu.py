"""Google's TPUs: slices of whole hosts, whose pods read libtpu's, TorchTPU's and MegaScale's variables.

Each slice of several hosts has a node pool to itself.

A worker's place in its slice is its completion index everywhere: in ``TPU_WORKER_ID``, in the order of
``TPU_WORKER_HOSTNAMES`` and in ``NODE_RANK``. TorchTPU would else derive the node rank from the chips' coordinates, and
a rank would then look for itself under another host's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from trainwright_operator.api import names
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.api.topology import (
    LABEL_ACCELERATOR,
    LABEL_NODE_POOL,
    LABEL_TOPOLOGY,
    ShapeError,
    Slice,
    axes,
    counted,
    generation_of,
)
from trainwright_operator.core.observe import COMPLETION_INDEX
from trainwright_operator.core.placement.vendor import (
    TORCH_XLA,
    TORCHTPU,
    Layout,
    Object,
    Placement,
    PoolError,
    Seat,
    Vendor,
)

MEGASCALE_PORT = 8080
JOB_NAME = "batch.kubernetes.io/job-name"
"""The Job controller's label on every pod of a Job, which is to say of a slice in an attempt."""


class Tpu(Vendor):
    def image_suffix(self, pool: AcceleratorPool) -> str:
        """PyTorch/XLA and TorchTPU need different torches, so different images."""
        return f"{self.name}-xla" if pool.runtime == TORCH_XLA else self.name

    def node_labels(self, pool: AcceleratorPool) -> dict[str, str]:
        """GKE's labels of the slice: its topology, and its generation where the pool says which."""
        if not pool.topology:
            return {}
        known = generation_of(pool.generation, pool.node_selector)
        accelerator = {LABEL_ACCELERATOR: known.accelerator} if known else {}
        return {**accelerator, LABEL_TOPOLOGY: pool.topology}

    def layout(self, job: TrainingJob, pool: AcceleratorPool) -> Layout:
        """A pod takes a whole host. PyTorch/XLA has one process for each host, TorchTPU one for each device."""
        shape = _slice(pool)
        nodes = _nodes(job, pool, shape)
        _check_per_node(job, pool, shape)
        _check_hosts(job, pool, shape)
        ranks = 1 if pool.runtime == TORCH_XLA else shape.chips * shape.devices
        return Layout(nodes, devices=shape.chips, ranks=ranks, slices=pool.slices, slice=shape)

    def environment(self, place: Placement, seat: Seat) -> list[Object]:
        assert place.slice
        own = {TORCHTPU: _torchtpu(place.slice, seat.session), TORCH_XLA: [_value("PJRT_DEVICE", "TPU")]}
        return [
            _index("TPU_WORKER_ID"),
            _value("TPU_WORKER_HOSTNAMES", ",".join(seat.hosts) if place.nodes > 1 else "localhost"),
            *own.get(place.launcher, []),
            *_megascale(place, seat),
        ]

    def affinity(self, place: Placement, labels: Mapping[str, str], job_name: str) -> Object | None:
        """A slice of several hosts has a node pool to itself: its pods keep together, and all others out.

        A slice of one host needs nothing: the pod takes all of its chips.
        """
        if place.nodes == 1:
            return None
        uid = labels[names.LABEL_JOB_UID]
        ours = [_expression(names.LABEL_JOB_UID, "In", uid), _expression(JOB_NAME, "NotIn", job_name)]
        others = [
            _expression(names.LABEL_JOB_UID, "Exists"),
            _expression(names.LABEL_SLICE, "Exists"),
            _expression(names.LABEL_JOB_UID, "NotIn", uid),
        ]
        together = {"labelSelector": {"matchLabels": {JOB_NAME: job_name, names.LABEL_JOB_UID: uid}}}
        return {
            "podAffinity": _required(together),
            "podAntiAffinity": _required(
                {"labelSelector": {"matchExpressions": ours}},
                {"labelSelector": {"matchExpressions": others}, "namespaceSelector": {}},
            ),
        }

    def emulated(self, place: Placement) -> bool:
        """PyTorch/XLA takes the CPU for a TPU where the pool's environment says so."""
        return place.launcher == TORCH_XLA and {"name": "PJRT_DEVICE", "value": "CPU"} in place.env


VENDOR = Tpu(
    "tpu",
    resource="google.com/tpu",
    runtime=TORCHTPU,
    device_files=("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
)


# The shape of a slice


def _slice(pool: AcceleratorPool) -> Slice:
    topology, chips = pool.topology, pool.chips_per_host
    if topology is None or chips is None:
        missing = "topology" if topology is None else "chipsPerHost"
        raise PoolError(f"accelerator pool {pool.name!r}: spec.{missing} is missing: a tpu pool states both")
    known = generation_of(pool.generation, pool.node_selector)
    try:
        return Slice.of(topology, chips, known.devices_per_chip if known else 1)
    except ShapeError as error:
        raise PoolError(f"accelerator pool {pool.name!r}: spec.topology: {error}") from None


def _nodes(job: TrainingJob, pool: AcceleratorPool, shape: Slice) -> int:
    """The hosts of a slice; ``nodes``, when a job states it, is those of all slices."""
    asked, slices = job.spec.accelerator.nodes, pool.slices
    if asked is None or asked == shape.hosts * slices:
        return shape.hosts
    arithmetic = shape.explain()
    if slices > 1:
        arithmetic += f", x {slices} slices = {shape.hosts * slices} hosts"
    raise PoolError(f"spec.accelerator.nodes: {arithmetic}; nodes: {asked} asked")


def _check_per_node(job: TrainingJob, pool: AcceleratorPool, shape: Slice) -> None:
    asked = job.spec.accelerator.per_node
    if asked is not None and asked != shape.chips:
        raise PoolError(
            f"spec.accelerator.perNode: a pod takes a whole host, and a host of pool {pool.name!r} has "
            f"{counted(shape.chips, 'chip')}; perNode: {asked} asked"
        )


def _check_hosts(job: TrainingJob, pool: AcceleratorPool, shape: Slice) -> None:
    """With PyTorch/XLA the Trainer drives one host; a script of the user's own may drive as many as it can."""
    hosts = shape.hosts * pool.slices
    if pool.runtime == TORCH_XLA and hosts > 1 and job.spec.script is None:
        raise PoolError(
            f"spec.accelerator.pool: {pool.name!r} has {hosts} hosts, and the Trainer drives one with torch_xla; "
            "choose a pool of one host, or of runtime torchtpu"
        )


# Variables and terms


def _torchtpu(shape: Slice, session: str) -> list[Object]:
    return [
        _index("JOB_COMPLETION_INDEX"),
        _index("NODE_RANK"),
        _value("TORCH_TPU_TOPOLOGY", mesh(shape)),
        _value("TORCH_TPU_XPROF_SESSION_ID", str(int(hashlib.sha256(session.encode()).hexdigest()[:15], 16))),
    ]


def mesh(shape: Slice) -> str:
    """The chips along x, y and z: ``4,4,1``; and where a chip shows several devices, how many: ``2,2,1,2``."""
    whole = (*axes(shape.topology), 1, 1)[:3]
    return ",".join(map(str, whole if shape.devices == 1 else (*whole, shape.devices)))


def _megascale(place: Placement, seat: Seat) -> list[Object]:
    """The port stands in the address too: libtpu would else put its own process's port there."""
    if place.slices == 1:
        return []
    return [
        _value("MEGASCALE_NUM_SLICES", str(place.slices)),
        _value("MEGASCALE_SLICE_ID", str(seat.index)),
        _value("MEGASCALE_COORDINATOR_ADDRESS", f"{seat.first}:{MEGASCALE_PORT}"),
        _value("MEGASCALE_PORT", str(MEGASCALE_PORT)),
    ]


def _required(*terms: Object) -> Object:
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": [{**term, "topologyKey": LABEL_NODE_POOL} for term in terms]
    }


def _expression(key: str, operator: str, *values: str) -> Object:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _value(name: str, value: str) -> Object:
    return {"name": name, "value": value}


def _index(name: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}}}
