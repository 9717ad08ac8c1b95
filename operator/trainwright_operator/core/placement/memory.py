"""The memory of one accelerator of a pool: as the pool states it, or by its product in the labels of its nodes."""

from __future__ import annotations

import re

from trainwright_operator.api.pool import AcceleratorPool
from trainwright_operator.core.quantities import amount

GIB = 2**30
_PRODUCTS = {
    # NVIDIA: what nvidia-smi reports is somewhat less than the product's name says
    "h100-80gb|nvidia-h100|a100-80gb|a100-sxm4-80gb|a100-pcie-80gb": 80,
    "a100-sxm4-40gb|a100-pcie-40gb|tesla-a100|a100-40gb": 40,
    "h200": 141, "b200": 180, "b300": 270, "gb200": 186, "gh200-480gb": 96, "h100-nvl": 94, "h20": 96,
    "l40s|l40|rtx-6000-ada": 48, "l4": 24, "a10g|a10": 24, "a40": 48, "t4": 16, "v100-sxm2-32gb|v100-pcie-32gb": 32,
    "v100": 16,
    # AMD
    "mi325x": 256, "mi300x": 192, "mi300a": 128, "mi355x|mi350x": 288, "mi250x|mi250": 64, "mi210": 64,
}  # fmt: skip
"""Patterns of product names in lower case -> GiB of one accelerator."""
_TPU = {"v5e": 16, "v5p": 95, "v6e": 32, "v7x": 96}
"""GiB of one device as a rank sees it; a chip of v7x has two."""
_LABELS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name", "cloud.google.com/gke-accelerator")


def memory_of(pool: AcceleratorPool) -> float | None:
    """Bytes of one accelerator; None if neither the pool nor its labels say."""
    if pool.memory_per_accelerator is not None:
        return amount(pool.memory_per_accelerator)
    if pool.vendor == "tpu":
        size = _TPU.get(pool.generation or "")
        return size * GIB if size else None
    product = next((pool.node_selector[label] for label in _LABELS if label in pool.node_selector), "")
    return _of_mig(pool.resource_name or "") or _of_product(product)


def _of_mig(resource: str) -> float | None:
    """A slice of a GPU says its size itself: ``nvidia.com/mig-1g.5gb``."""
    found = re.search(r"mig-\d+g\.(\d+)gb", resource)
    return int(found[1]) * GIB if found else None


def _of_product(product: str) -> float | None:
    name = re.sub(r"[^a-z0-9]+", "-", product.lower())
    sizes = (size for pattern, size in _PRODUCTS.items() if re.search(rf"(^|-)({pattern})(-|$)", name))
    size = next(sizes, None)
    return size * GIB if size else None
