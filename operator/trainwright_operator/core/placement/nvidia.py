"""NVIDIA's GPUs, under the device plugin or the DRA driver."""

from __future__ import annotations

from trainwright_operator.core.placement.vendor import Vendor

VENDOR = Vendor("nvidia", resource="nvidia.com/gpu", device_files=("/dev/nvidia[0-9]*",))
