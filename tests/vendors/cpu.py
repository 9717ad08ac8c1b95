"""Nodes without accelerators: pools, what jobs get on them, and what is refused."""

from __future__ import annotations

from typing import Any

from vendors import Case

POOLS: dict[str, dict[str, Any]] = {
    "cpu-8": {"vendor": "cpu", "perNode": 8},
}

CASES: dict[str, Case] = {
    "cpu, one rank": Case("cpu", None, None, 1, 1, {"cpu": "1"}),
    "cpu, 2 nodes of 4": Case("cpu-8", 2, 4, 2, 4, {"cpu": "4"}, last={"PET_NODE_RANK": "1", "PET_NNODES": "2"}),
}
