"""What accelerators this machine has, and the words for a job that is planned for others.

A run takes the pods of the plan as they are, so it needs devices of the pool's vendor here, enough for one pod.
"""

from __future__ import annotations

from pathlib import Path

from trainwright.contract import UserError
from trainwright_operator.api.spec import AcceleratorPool
from trainwright_operator.api.topology import counted
from trainwright_operator.core.placement.pools import AMD, CPU, NVIDIA, TORCH_XLA, TPU, Placement

_NODES = {
    NVIDIA: ("/dev", "nvidia[0-9]*"),
    AMD: ("/dev/dri", "renderD*"),
    TPU: ("/dev", "accel[0-9]*"),
}
"""Where each vendor's driver shows a device."""


def count(vendor: str) -> int:
    """Devices of ``vendor`` that a process here could open."""
    if vendor == AMD and not Path("/dev/kfd").exists():
        return 0
    folder, pattern = _NODES[vendor]
    found = len(list(Path(folder).glob(pattern)))
    return found or (len(list(Path("/dev/vfio").glob("[0-9]*"))) if vendor == TPU else 0)


def _stood_in_for(planned: Placement) -> bool:
    """PyTorch/XLA takes the CPU for a TPU where the pool's environment says so."""
    return planned.launcher == TORCH_XLA and {"name": "PJRT_DEVICE", "value": "CPU"} in planned.env


def check(pool: AcceleratorPool, planned: Placement, found: int | None = None) -> None:
    """Raises :class:`UserError` when the planned pods cannot run here; ``found`` stands in for what is here."""
    if pool.vendor == CPU:
        return
    where = f"spec.accelerator.pool: {pool.name!r} is a pool of vendor {pool.vendor}"
    mend = "`--pool cpu` trains the same job here on CPU"
    if found is None:
        found = planned.devices if _stood_in_for(planned) else count(pool.vendor)
    wanted = counted(planned.devices, "device")
    if found < planned.devices:
        has = f"only {found}" if found else "none"
        raise UserError(f"{where}, whose pods take {wanted} each, and this machine has {has}; {mend}")
    if planned.pods > 1:
        raise UserError(f"{where}, and {planned.pods} pods would share the devices of this machine; {mend}")
