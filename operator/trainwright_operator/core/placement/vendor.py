"""What a vendor's accelerators change in a plan: the interface behind which each vendor has a file of its own.

:class:`Vendor` describes accelerators that a device plugin offers as an extended resource, one rank for each. Most
vendors are an instance of it with other data; one that needs more overrides the methods (``tpu.py``). Nobody asks for
a vendor by its name: code that depends on the hardware asks the pool's vendor object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainwright.contract import RUNTIMES
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.api.topology import Slice

Object = dict[str, Any]

TORCHRUN, TORCHTPU, TORCH_XLA = RUNTIMES


class PoolError(Exception):
    """A job that does not fit its pool, or a pool that cannot be planned; the message says the fix."""

    @property
    def path(self) -> str:
        """The field of the job that it is about."""
        field = str(self).partition(": ")[0]
        return field if field.startswith("spec.") else "spec.accelerator.pool"


@dataclass(frozen=True)
class Layout:
    """How an attempt is divided: ``slices`` Jobs of ``nodes`` pods, each pod with ``devices`` for its ``ranks``."""

    nodes: int
    devices: int
    ranks: int
    slices: int = 1
    slice: Slice | None = None
    """The shape of a TPU slice; None elsewhere."""


@dataclass(frozen=True)
class Seat:
    """Which Job of the attempt a pod belongs to: the names of its ``hosts`` in order, and of the ``first`` of all."""

    index: int
    hosts: tuple[str, ...]
    first: str
    session: str
    """The same for every pod of the attempt and for no other attempt."""


@dataclass(frozen=True)
class Vendor:
    """A vendor's accelerators. What a pool states itself goes before what is given here."""

    name: str
    """``spec.vendor`` of its pools."""
    resource: str | None = None
    """The extended resource of its device plugin, which is also the key of the taint on its nodes. None: no devices."""
    env: tuple[Object, ...] = ()
    """Environment variables of every trainer; the pool's and the job's own go before."""
    runtime: str = TORCHRUN
    """What starts the ranks."""
    device_files: tuple[str, ...] = ()
    """Where its driver shows devices on a machine, as globs; the first one that matches counts them."""
    driver_file: str | None = None
    """A file without which ``device_files`` belong to something else."""

    # The pool

    def resource_of(self, pool: AcceleratorPool) -> str | None:
        """The extended resource that stands for one device of the pool; None for DRA, and where there are none."""
        return None if pool.device_class_name else pool.resource_name or self.resource

    def image_suffix(self, pool: AcceleratorPool) -> str:
        """The image's target: the end of its tag."""
        return self.name

    def node_labels(self, pool: AcceleratorPool) -> dict[str, str]:
        """Labels of the pool's nodes that follow from other fields than ``nodeSelector``."""
        return {}

    def tolerations(self, pool: AcceleratorPool) -> tuple[Object, ...]:
        """Of the taint that keeps other pods off nodes with accelerators, unless the pool states that key itself."""
        if self.resource is None or any(one.get("key") in (self.resource, None) for one in pool.tolerations):
            return ()
        return ({"key": self.resource, "operator": "Exists", "effect": "NoSchedule"},)

    # The job on the pool

    def layout(self, job: TrainingJob, pool: AcceleratorPool) -> Layout:
        """Raises :class:`PoolError` when the job does not fit the pool."""
        most = pool.per_node
        devices = job.spec.accelerator.per_node or most or 1
        if most and devices > most:
            raise PoolError(
                f"spec.accelerator.perNode: {devices} is more than pool {pool.name!r} has in a node ({most})"
            )
        return Layout(nodes=job.spec.accelerator.nodes or 1, devices=devices, ranks=devices)

    def default_requests(self, layout: Layout) -> dict[str, str]:
        """What a pod requests of resources of which the job states neither a request nor a limit."""
        return {}

    # The pods

    def environment(self, place: Placement, seat: Seat) -> list[Object]:
        """Variables of one pod that depend on its place in the attempt; the pool's and the job's own go before."""
        return []

    def affinity(self, place: Placement, labels: Mapping[str, str], job_name: str) -> Object | None:
        """Which pods those of the Job ``job_name`` stay near or away from; ``labels`` are theirs."""
        return None

    # This machine

    def emulated(self, place: Placement) -> bool:
        """Whether the pool's environment lets something else stand in for the devices, so that none is needed."""
        return False


@dataclass(frozen=True)
class Placement:
    """Where and how the pods of an attempt run: one Job of ``nodes`` pods for each of ``slices``."""

    vendor: Vendor
    nodes: int
    per_node: int
    """The ranks of a pod."""
    launcher: str
    image: str
    requests: Mapping[str, Any]
    limits: Mapping[str, Any]
    slices: int = 1
    slice: Slice | None = None
    """The shape of a TPU slice; None elsewhere."""
    threads: int = 1
    node_selector: Mapping[str, str] | None = None
    tolerations: tuple[Object, ...] = ()
    env: tuple[Object, ...] = ()
    shm_size: str | None = None
    capabilities: tuple[str, ...] = ()
    device_class: str | None = None
    """Devices are claimed of this class (Dynamic Resource Allocation), ``devices`` for each pod."""
    device_selectors: tuple[str, ...] = ()
    devices: int = 0
    quota_resource: str | None = None
    """What a queue counts claimed devices as; the pods themselves do not request it."""
    annotations: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    """Labels of the pods that a queue asks for."""
    gates: tuple[str, ...] = ()
    """Scheduling gates of the pods, which somebody else removes."""
    volumes: tuple[Object, ...] = ()
    volume_mounts: tuple[Object, ...] = ()
    runtime_class: str | None = None
    scheduler: str | None = None
    """Of the pool; a job that names one goes before it."""
    groups: tuple[int, ...] = ()

    @property
    def pods(self) -> int:
        """All pods of an attempt: what starts and ends together."""
        return self.nodes * self.slices
