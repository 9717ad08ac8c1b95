"""A pool and a job's request turned into everything that depends on the hardware: resources, nodes, image, environment.

Moving a job from one vendor to another is one field of its spec, because all that follows from it is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainwright.contract import RUNTIMES
from trainwright_operator import __version__
from trainwright_operator.api import names
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.api.topology import (
    LABEL_ACCELERATOR,
    LABEL_TOPOLOGY,
    ShapeError,
    Slice,
    counted,
    generation_of,
)
from trainwright_operator.core.quantities import amount, half, threads

CPU, NVIDIA, AMD, TPU = "cpu", "nvidia", "amd", "tpu"
BUILTIN: Mapping[str, AcceleratorPool] = {CPU: AcceleratorPool(CPU, CPU)}
"""Pools that every cluster has, unless it defines one of the same name."""
DEFAULT_IMAGE = f"trainwright/trainer:{__version__}-{CPU}"
TORCHRUN, TORCHTPU, TORCH_XLA = RUNTIMES


class PoolError(Exception):
    """A job that does not fit its pool, or a pool that cannot be planned; the message says the mend."""

    @property
    def path(self) -> str:
        """The field of the job that it is about."""
        field = str(self).partition(": ")[0]
        return field if field.startswith("spec.") else "spec.accelerator.pool"


@dataclass(frozen=True)
class Vendor:
    """What every pool of a vendor has in common, as long as it says nothing else."""

    resource: str
    """The resource that the vendor's device plugin offers, and the key of the taint on nodes that have it."""
    env: tuple[dict[str, Any], ...] = ()


VENDORS: Mapping[str, Vendor] = {
    NVIDIA: Vendor("nvidia.com/gpu"),
    AMD: Vendor("amd.com/gpu", env=({"name": "HSA_FORCE_FINE_GRAIN_PCIE", "value": "1"},)),
    TPU: Vendor("google.com/tpu"),
}


@dataclass(frozen=True)
class Placement:
    """Where and how the pods of an attempt run. One Job of ``nodes`` pods for each of ``slices``.

    ``per_node`` is the number of ranks in a pod. ``slice`` is the shape of a TPU slice, None elsewhere.
    """

    nodes: int
    per_node: int
    launcher: str
    image: str
    requests: Mapping[str, Any]
    limits: Mapping[str, Any]
    vendor: str = CPU
    slices: int = 1
    slice: Slice | None = None
    threads: int = 1
    node_selector: Mapping[str, str] | None = None
    tolerations: tuple[dict[str, Any], ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    shm_size: str | None = None
    capabilities: tuple[str, ...] = ()
    device_class: str | None = None
    """Devices are claimed of this class (Dynamic Resource Allocation), ``devices`` for each pod."""
    device_selectors: tuple[str, ...] = ()
    devices: int = 0
    annotations: Mapping[str, str] | None = None
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    runtime_class: str | None = None
    groups: tuple[int, ...] = ()

    @property
    def pods(self) -> int:
        """All pods of an attempt: what starts and ends together."""
        return self.nodes * self.slices


def choose(job: TrainingJob, pools: Mapping[str, AcceleratorPool]) -> AcceleratorPool | None:
    """The pool that the job names, else the cluster's default one, else cpu; None when there is none of that name."""
    known = {**BUILTIN, **pools}
    wanted = job.spec.accelerator.pool
    return known.get(wanted) if wanted else _default(pools.values()) or known[CPU]


def _default(pools: Iterable[AcceleratorPool]) -> AcceleratorPool | None:
    marked = [pool for pool in pools if pool.annotations.get(names.ANNOTATION_DEFAULT_POOL) == "true"]
    return min(marked, key=lambda pool: pool.name, default=None)


def image_of(pool: AcceleratorPool, image: str = DEFAULT_IMAGE) -> str:
    """The pool's own image, else this release's for its vendor: ``image`` with the vendor in the place of ``cpu``."""
    if pool.image:
        return pool.image
    suffix = f"-{CPU}"
    target = f"{TPU}-xla" if pool.runtime == TORCH_XLA else pool.vendor
    return f"{image.removesuffix(suffix)}-{target}" if image.endswith(suffix) else image


def place(job: TrainingJob, pool: AcceleratorPool) -> Placement:
    """Raises :class:`PoolError` when the job does not fit the pool."""
    shape = _slice(pool) if pool.vendor == TPU else None
    nodes = _slice_nodes(job, pool, shape) if shape else job.spec.accelerator.nodes or 1
    devices = shape.chips if shape else _per_node(job, pool)
    if shape:
        _check_per_node(job, pool, shape)
        _check_hosts(job, pool, shape)
    ranks = _ranks(pool, shape, devices)
    template = job.spec.pod_template
    if template.host_network and not pool.allow_host_network:
        raise PoolError(
            f"spec.podTemplate.hostNetwork: pool {pool.name!r} does not allow it (allowHostNetwork); remove it, or "
            "choose another pool"
        )
    requests, limits = _resources(job, pool, devices)
    check_resources(requests, limits)
    try:
        omp = threads(requests.get(CPU) or limits.get(CPU) or 1, ranks)
        shm = _shm(pool, limits)
    except ValueError as error:
        raise PoolError(f"spec.podTemplate.resources: {error}") from None
    return Placement(
        nodes=nodes,
        per_node=ranks,
        launcher=pool.runtime or (TORCHTPU if shape else TORCHRUN),
        image=template.image or image_of(pool),
        requests=requests,
        limits=limits,
        vendor=pool.vendor,
        slices=(pool.slices or 1) if shape else 1,
        slice=shape,
        threads=omp,
        node_selector={**_slice_labels(pool), **pool.node_selector, **template.node_selector},
        tolerations=(*_tolerations(pool), *pool.tolerations, *template.tolerations),
        env=(*(VENDORS[pool.vendor].env if pool.vendor in VENDORS else ()), *pool.env),
        shm_size=shm,
        capabilities=("IPC_LOCK",) if pool.rdma_resources else (),
        device_class=pool.device_class,
        device_selectors=pool.device_selectors,
        devices=devices,
        annotations=pool.pod_annotations,
        volumes=pool.volumes,
        volume_mounts=pool.volume_mounts,
        runtime_class=template.runtime_class or pool.runtime_class,
        groups=pool.supplemental_groups,
    )


def _per_node(job: TrainingJob, pool: AcceleratorPool) -> int:
    """The ranks of a pod: each has an accelerator, and on a CPU pool a core unless resources say otherwise."""
    most = pool.per_node
    wanted = job.spec.accelerator.per_node or most or 1
    if most and wanted > most:
        raise PoolError(f"spec.accelerator.perNode: {wanted} is more than pool {pool.name!r} has in a node ({most})")
    return wanted


def _ranks(pool: AcceleratorPool, shape: Slice | None, devices: int) -> int:
    """A process for each accelerator; with PyTorch/XLA one for each host, which drives all of its chips."""
    if shape is None:
        return devices
    return 1 if pool.runtime == TORCH_XLA else shape.chips * shape.devices


# A TPU's shape


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


def _slice_nodes(job: TrainingJob, pool: AcceleratorPool, shape: Slice) -> int:
    """The hosts of a slice; ``nodes``, when a job states it, is those of all slices."""
    asked, slices = job.spec.accelerator.nodes, pool.slices or 1
    if asked is None or asked == shape.hosts * slices:
        return shape.hosts
    words = shape.words()
    if slices > 1:
        words += f", x {slices} slices = {shape.hosts * slices} hosts"
    raise PoolError(f"spec.accelerator.nodes: {words}; nodes: {asked} asked")


def _check_per_node(job: TrainingJob, pool: AcceleratorPool, shape: Slice) -> None:
    asked = job.spec.accelerator.per_node
    if asked is not None and asked != shape.chips:
        raise PoolError(
            f"spec.accelerator.perNode: a pod takes a whole host, and a host of pool {pool.name!r} has "
            f"{counted(shape.chips, 'chip')}; perNode: {asked} asked"
        )


def _check_hosts(job: TrainingJob, pool: AcceleratorPool, shape: Slice) -> None:
    """With PyTorch/XLA the Trainer drives one host; a script of the user's own may drive as many as it can."""
    hosts = shape.hosts * (pool.slices or 1)
    if pool.runtime == TORCH_XLA and hosts > 1 and job.spec.script is None:
        raise PoolError(
            f"spec.accelerator.pool: {pool.name!r} has {hosts} hosts, and the Trainer drives one with torch_xla; "
            "choose a pool of one host, or of runtime torchtpu"
        )


def _slice_labels(pool: AcceleratorPool) -> dict[str, str]:
    """GKE's labels of the slice: its topology, and where the pool says of which generation it is, that."""
    if pool.vendor != TPU or not pool.topology:
        return {}
    known = generation_of(pool.generation, pool.node_selector)
    accelerator = {LABEL_ACCELERATOR: known.accelerator} if known else {}
    return {**accelerator, LABEL_TOPOLOGY: pool.topology}


# Resources of a pod


def _resources(job: TrainingJob, pool: AcceleratorPool, devices: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Requests and limits: what the job says, and the accelerators, which are no less as a limit than as a request."""
    stated = job.spec.pod_template.resources
    requests, limits = dict(stated.get("requests") or {}), dict(stated.get("limits") or {})
    if pool.vendor == CPU and CPU not in requests and CPU not in limits:
        requests[CPU] = str(devices)
    exact = dict(pool.rdma_resources)
    if pool.vendor != CPU and not pool.device_class:
        exact = {resource_of(pool): str(devices), **exact}
    return {**requests, **exact}, {**limits, **exact}


def check_resources(requests: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    """What an API server asks of a container's resources, which it tells of the Job only, again and again.

    Raises :class:`PoolError`.
    """
    where = "spec.podTemplate.resources"
    for name in sorted({*requests, *limits}):
        wanted, most = requests.get(name), limits.get(name)
        native = "/" not in name
        if native and name not in _NATIVE and not name.startswith(_HUGE_PAGES):
            raise PoolError(
                f"{where}: {name} is no resource of a container; it is one of {', '.join(_NATIVE)}, or VENDOR/NAME"
            )
        exact = not native or name.startswith(_HUGE_PAGES)
        if exact and most is None:
            raise PoolError(f"{where}.limits: {name} has a request alone, and takes the same amount as its limit")
        if wanted is None or most is None:
            continue
        over = _amount(where, wanted) / max(_amount(where, most), 1e-12) - 1
        if exact and abs(over) > 1e-9:
            raise PoolError(f"{where}.requests: {name} must be as much as its limit, {most}; {wanted} asked")
        if over > 1e-9:
            raise PoolError(
                f"{where}.requests: {name} is {wanted}, over its limit of {most}; lower it, or raise the limit"
            )
    if any(name.startswith(_HUGE_PAGES) for name in limits) and not {CPU, "memory"} & {*requests, *limits}:
        raise PoolError(f"{where}: huge pages need an amount of cpu or memory beside them")


def _amount(where: str, quantity: Any) -> float:
    try:
        return amount(quantity)
    except ValueError as error:
        raise PoolError(f"{where}: {error}") from None


_NATIVE = ("cpu", "memory", "ephemeral-storage")
_HUGE_PAGES = "hugepages-"


def resource_of(pool: AcceleratorPool) -> str:
    """The extended resource that stands for one accelerator of the pool."""
    return pool.resource_name or VENDORS[pool.vendor].resource


def _tolerations(pool: AcceleratorPool) -> tuple[dict[str, Any], ...]:
    """Of the taint that keeps other pods from nodes with accelerators, unless the pool speaks of that key itself."""
    if pool.vendor == CPU:
        return ()
    key = VENDORS[pool.vendor].resource
    if any(one.get("key") in (key, None) for one in pool.tolerations):
        return ()
    return ({"key": key, "operator": "Exists", "effect": "NoSchedule"},)


def _shm(pool: AcceleratorPool, limits: Mapping[str, Any]) -> str | None:
    """Of /dev/shm, which counts as the container's memory: as the pool says, else half of the limit.

    None where there is no limit either: then it is half of the node's memory, as on any Linux machine.
    """
    memory = limits.get("memory")
    if pool.shm_size is None:
        return None if memory is None else half(memory)
    if memory is not None and amount(pool.shm_size) >= amount(memory):
        raise PoolError(
            f"spec.podTemplate.resources.limits.memory: {memory} leaves nothing beside the {pool.shm_size} of /dev/shm "
            f"of pool {pool.name!r} (shmSize); raise the limit"
        )
    return pool.shm_size
