"""Counts the accelerators of this machine, and refuses a job that needs others.

A local run executes the pods as planned, so it needs devices of the pool's vendor, enough for one pod.
"""

from __future__ import annotations

from pathlib import Path

from trainwright.contract import UserError
from trainwright_operator.api.spec import AcceleratorPool
from trainwright_operator.api.topology import counted
from trainwright_operator.core.placement.vendor import Placement, Vendor


def count(vendor: Vendor) -> int:
    """Devices of ``vendor`` that a process here could open."""
    if vendor.driver_file and not Path(vendor.driver_file).exists():
        return 0
    found = (len(list(Path("/").glob(files.lstrip("/")))) for files in vendor.device_files)
    return next(filter(None, found), 0)


def check(pool: AcceleratorPool, planned: Placement, found: int | None = None) -> None:
    """Raises :class:`UserError` if the planned pods cannot run here; ``found`` replaces the count of devices."""
    vendor = planned.vendor
    if vendor.resource is None:
        return
    where = f"spec.accelerator.pool: {pool.name!r} is a pool of vendor {vendor.name}"
    fix = "`--pool cpu` trains the same job here on CPU"
    if found is None:
        found = planned.devices if vendor.emulated(planned) else count(vendor)
    wanted = counted(planned.devices, "device")
    if found < planned.devices:
        has = f"only {found}" if found else "none"
        raise UserError(f"{where}, whose pods take {wanted} each, and this machine has {has}; {fix}")
    if planned.pods > 1:
        raise UserError(f"{where}, and {planned.pods} pods would share the devices of this machine; {fix}")
