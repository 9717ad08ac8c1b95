"""AMD's GPUs, whole and partitioned: pools, what jobs get on them, and what is refused."""

from __future__ import annotations

from typing import Any

from vendors import Case

AMD = "amd.com/gpu"
HSA = {"HSA_FORCE_FINE_GRAIN_PCIE": "1"}

POOLS: dict[str, dict[str, Any]] = {
    "mi300x": {
        "vendor": "amd",
        "perNode": 8,
        "nodeSelector": {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"},
        "supplementalGroups": [44, 110],
    },
    "mi300x-cpx": {"vendor": "amd", "resourceName": "amd.com/cpx_nps4", "perNode": 64},
}

MI300X = POOLS["mi300x"]["nodeSelector"]
CASES: dict[str, Case] = {
    "amd, whole nodes": Case("mi300x", 2, None, 2, 8, {AMD: "8"}, MI300X, AMD, first=HSA, last=HSA, image="amd"),
    "amd, partitions": Case("mi300x-cpx", 1, 8, 1, 8, {"amd.com/cpx_nps4": "8"}, {}, AMD, first=HSA, image="amd"),
}
