"""A pool and a job's request turned into everything that depends on the hardware: resources, nodes, image, environment.

Moving a job from one vendor to another is one field of its spec, because all that follows from it is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainwright_operator import __version__, names
from trainwright_operator.core.spec import AcceleratorPool, TrainingJob

CPU = "cpu"
BUILTIN: Mapping[str, AcceleratorPool] = {CPU: AcceleratorPool(CPU, CPU)}
"""Pools that every cluster has, unless it defines one of the same name."""
DEFAULT_IMAGE = f"trainwright/trainer:{__version__}-{{vendor}}"


class PoolError(Exception):
    """A job that does not fit its pool, or a pool that cannot be planned; the message says the mend."""


@dataclass(frozen=True)
class Placement:
    """Where and how the pods of an attempt run. One Job of ``nodes`` pods for each of ``slices``."""

    nodes: int
    per_node: int
    launcher: str
    image: str
    requests: Mapping[str, Any]
    limits: Mapping[str, Any]
    slices: int = 1
    threads: int = 1
    node_selector: Mapping[str, str] | None = None
    tolerations: tuple[dict[str, Any], ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    shm_size: str | None = None


def choose(job: TrainingJob, pools: Mapping[str, AcceleratorPool]) -> AcceleratorPool | None:
    """The pool that the job names, else the cluster's default one, else cpu; None when there is none of that name."""
    known = {**BUILTIN, **pools}
    wanted = job.spec.accelerator.pool
    return known.get(wanted) if wanted else _default(pools.values()) or known[CPU]


def _default(pools: Iterable[AcceleratorPool]) -> AcceleratorPool | None:
    marked = [pool for pool in pools if pool.annotations.get(names.ANNOTATION_DEFAULT_POOL) == "true"]
    return min(marked, key=lambda pool: pool.name, default=None)


def place(job: TrainingJob, pool: AcceleratorPool) -> Placement:
    """Raises :class:`PoolError` when the job does not fit, or the vendor is not planned yet."""
    if pool.vendor != CPU:
        raise PoolError(
            f"accelerator pool {pool.name!r}: vendor {pool.vendor} cannot be planned by this release yet; "
            "choose a pool of vendor cpu"
        )
    return _place_cpu(job, pool)


def _place_cpu(job: TrainingJob, pool: AcceleratorPool) -> Placement:
    """On a CPU pool ``perNode`` is the number of ranks in a pod, each with one core unless resources say otherwise."""
    request, template = job.spec.accelerator, job.spec.pod_template
    most = pool.per_node
    per_node = request.per_node or most or 1
    if most and per_node > most:
        raise PoolError(f"spec.accelerator.perNode: {per_node} is more than pool {pool.name!r} has in a node ({most})")
    limits = dict(template.resources.get("limits") or {})
    requests = dict(template.resources.get("requests") or {})
    if CPU not in requests and CPU not in limits:
        requests[CPU] = str(per_node)
    return Placement(
        nodes=request.nodes or 1,
        per_node=per_node,
        launcher=pool.runtime or "torchrun",
        image=template.image or pool.image or DEFAULT_IMAGE.format(vendor=pool.vendor),
        requests=requests,
        limits=limits,
        threads=threads(requests.get(CPU) or limits[CPU], per_node),
        node_selector={**pool.node_selector, **template.node_selector},
        tolerations=(*pool.tolerations, *template.tolerations),
        env=pool.env,
        shm_size=pool.shm_size,
    )


def threads(cpu: str | float, ranks: int) -> int:
    """``OMP_NUM_THREADS``: each rank's whole share of the cores that the pod asks for, and at least one.

    It follows from the manifest alone, never from the machine, because results depend on it to the last bit.
    """
    return max(1, int(cores(cpu) / ranks))


def cores(quantity: str | float) -> float:
    """A CPU quantity in cores: ``4``, ``"1.5"``, ``"500m"``."""
    text = str(quantity)
    for suffix, size in (("m", 1e-3), ("k", 1e3), ("u", 1e-6), ("n", 1e-9)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * size
    return float(text)
