"""A pool and a job's request turned into everything that depends on the hardware: resources, nodes, image, environment.

Moving a job from one vendor to another is one field of its spec, because all that follows from it is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwright_operator import __version__
from trainwright_operator.api import names
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core import elastic
from trainwright_operator.core.placement import amd, cpu, nvidia, tpu
from trainwright_operator.core.placement.resources import requests_and_limits, shm_size
from trainwright_operator.core.placement.vendor import Placement, PoolError, Vendor
from trainwright_operator.core.quantities import threads

VENDORS: Mapping[str, Vendor] = {vendor.name: vendor for vendor in (cpu.VENDOR, nvidia.VENDOR, amd.VENDOR, tpu.VENDOR)}
CPU = cpu.VENDOR.name
BUILTIN: Mapping[str, AcceleratorPool] = {CPU: AcceleratorPool(CPU, CPU)}
"""Pools that every cluster has, unless it defines one of the same name."""
DEFAULT_IMAGE = f"trainwright/trainer:{__version__}-{CPU}"


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
    target = VENDORS[pool.vendor].image_suffix(pool)
    return f"{image.removesuffix(suffix)}-{target}" if image.endswith(suffix) else image


def place(job: TrainingJob, pool: AcceleratorPool) -> Placement:
    """Raises :class:`PoolError` when the job does not fit the pool."""
    vendor, template = VENDORS[pool.vendor], job.spec.pod_template
    layout = vendor.layout(job, pool)
    if template.host_network and not pool.allow_host_network:
        raise PoolError(
            f"spec.podTemplate.hostNetwork: pool {pool.name!r} does not allow it (allowHostNetwork); remove it, or "
            "choose another pool"
        )
    if job.spec.accelerator.min_nodes and layout.slice:
        raise PoolError("spec.accelerator.minNodes: a TPU slice has a fixed number of hosts; remove it")
    if reason := elastic.problem(job):
        raise PoolError(f"spec.accelerator.minNodes: {reason}")
    if job.spec.preflight is not None and vendor.name == tpu.VENDOR.name:
        raise PoolError("spec.preflight: it has no checks for TPUs; remove it, or choose another pool")
    if job.spec.watches_steps and vendor.name == tpu.VENDOR.name:
        raise PoolError(
            "spec.onAnomaly: a step of a compiled program cannot be left out on TPUs; remove it, or choose another pool"
        )
    _check_sharding(job, vendor, layout.slices * layout.nodes * layout.ranks)
    requests, limits = requests_and_limits(job, pool, vendor, layout)
    try:
        omp = threads(requests.get("cpu") or limits.get("cpu") or 1, layout.ranks)
        shm = shm_size(pool, limits)
    except ValueError as error:
        raise PoolError(f"spec.podTemplate.resources: {error}") from None
    return Placement(
        vendor=vendor,
        nodes=layout.nodes,
        per_node=layout.ranks,
        launcher=pool.runtime or vendor.runtime,
        image=template.image or image_of(pool),
        requests=requests,
        limits=limits,
        slices=layout.slices,
        slice=layout.slice,
        threads=omp,
        node_selector={**vendor.node_labels(pool), **pool.node_selector, **template.node_selector},
        tolerations=(*vendor.tolerations(pool), *pool.tolerations, *template.tolerations),
        env=(*vendor.env, *pool.env),
        shm_size=shm,
        capabilities=("IPC_LOCK",) if pool.rdma_resources else (),
        device_class=pool.device_class_name,
        device_selectors=pool.device_selectors,
        devices=layout.devices,
        quota_resource=pool.quota_resource,
        annotations=pool.pod_annotations,
        volumes=pool.volumes,
        volume_mounts=pool.volume_mounts,
        runtime_class=template.runtime_class_name or pool.runtime_class_name,
        groups=pool.supplemental_groups,
        scheduler=pool.scheduler_name,
    )


def _check_sharding(job: TrainingJob, vendor: Vendor, processes: int) -> None:
    """Raises :class:`PoolError` for ``fsdp`` where there is nothing to shard over, and for sizes of another run."""
    arguments = job.spec.training_arguments
    if not arguments.get("fsdp"):
        return
    field = "spec.trainingArguments.fsdp"
    if vendor.name == tpu.VENDOR.name:
        raise PoolError(f"{field}: TPUs are sharded by their own compiler; remove it, or choose a pool of GPUs")
    if processes == 1:
        raise PoolError(
            f"{field}: shards over the processes of a run, and this one trains alone; raise spec.accelerator.nodes or "
            "perNode, or remove it"
        )
    sizes = arguments.get("parallelism_config") or {}
    replicate, shard = sizes.get("dp_replicate_size"), sizes.get("dp_shard_size")
    product = (replicate or 1) * (shard or 1)
    if (replicate and shard and product != processes) or processes % product:
        raise PoolError(
            f"spec.trainingArguments.parallelismConfig: {' x '.join(str(size) for size in (replicate, shard) if size)} "
            f"does not make the {processes} processes of this job; let the product of the sizes be that"
        )
