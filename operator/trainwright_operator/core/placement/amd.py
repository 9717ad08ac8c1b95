"""AMD's Instinct GPUs, under ROCm."""

from __future__ import annotations

from trainwright_operator.core.placement.vendor import Vendor

VENDOR = Vendor(
    "amd",
    resource="amd.com/gpu",
    env=({"name": "HSA_FORCE_FINE_GRAIN_PCIE", "value": "1"},),
    device_files=("/dev/dri/renderD*",),
    driver_file="/dev/kfd",  # the GPU of a display has a render node too
)
