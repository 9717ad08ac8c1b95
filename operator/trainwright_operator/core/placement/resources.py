"""The resources of the trainer's container: what the job states, what its accelerators add, and what must hold of both.

An API server checks a pod's resources only when the Job controller creates the pod, and refuses it again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.placement.vendor import Layout, PoolError, Vendor
from trainwright_operator.core.quantities import amount, half

_NATIVE = ("cpu", "memory", "ephemeral-storage")
_HUGE_PAGES = "hugepages-"


def requests_and_limits(
    job: TrainingJob, pool: AcceleratorPool, vendor: Vendor, layout: Layout
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the job states, and the devices, which are the same as a request and as a limit.

    Raises :class:`PoolError` for amounts that an API server would refuse.
    """
    stated = job.spec.pod_template.resources
    requests, limits = dict(stated.get("requests") or {}), dict(stated.get("limits") or {})
    defaults = {
        name: value for name, value in vendor.default_requests(layout).items() if name not in {**requests, **limits}
    }
    devices = {resource: str(layout.devices)} if (resource := vendor.resource_of(pool)) else {}
    exact = {**devices, **pool.rdma_resources}
    requests, limits = {**defaults, **requests, **exact}, {**limits, **exact}
    check_resources(requests, limits)
    return requests, limits


def check_resources(requests: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    """What an API server asks of a container's resources; raises :class:`PoolError`."""
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
    if any(name.startswith(_HUGE_PAGES) for name in limits) and not {"cpu", "memory"} & {*requests, *limits}:
        raise PoolError(f"{where}: huge pages need an amount of cpu or memory beside them")


def _amount(where: str, quantity: Any) -> float:
    try:
        return amount(quantity)
    except ValueError as error:
        raise PoolError(f"{where}: {error}") from None


def shm_size(pool: AcceleratorPool, limits: Mapping[str, Any]) -> str | None:
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
