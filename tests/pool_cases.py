"""Pools as their admins write them, and what becomes of a job on each: the tables of all vendors, for several tests.

A case is a pool, the nodes and accelerators that a job asks for, and what every pod must then have. ``env`` is of the
first and the last pod, where they differ.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from builders import make_job
from trainwright_operator.api import names
from trainwright_operator.api.spec import parse_pool
from trainwright_operator.core.children import children
from trainwright_operator.core.placement.pools import BUILTIN, VENDORS, place
from vendors import Case

_TABLES = [import_module(f"vendors.{name}") for name in VENDORS]


def _all(table: str) -> dict[str, Any]:
    return {name: case for module in _TABLES for name, case in getattr(module, table, {}).items()}


POOLS: dict[str, dict[str, Any]] = _all("POOLS")
CASES: dict[str, Case] = _all("CASES")
REFUSALS: dict[str, tuple[str, dict[str, int], str]] = _all("REFUSALS")
"""Jobs that do not fit a pool: the pool, what they ask, and the message."""
WRONG: dict[str, tuple[str, dict[str, Any], str]] = _all("WRONG")
"""Pools that cannot be: one of the table, what is changed of it, and the whole of what its author is told."""

RESOURCES: dict[str, tuple[dict[str, dict[str, Any]], str | None]] = {
    # podTemplate.resources, and what is wrong with them for an API server
    "none": ({}, None),
    "requests alone": ({"requests": {"cpu": 2, "memory": "1Gi", "ephemeral-storage": "1G"}}, None),
    "as much as the limit, in another unit": ({"requests": {"cpu": "500m"}, "limits": {"cpu": "0.5"}}, None),
    "less than the limit": ({"requests": {"memory": "1000Mi"}, "limits": {"memory": "1Gi"}}, None),
    "more than the limit": (
        {"requests": {"memory": "8Gi"}, "limits": {"memory": "4Gi"}},
        "requests: memory is 8Gi, over its limit of 4Gi; lower it, or raise the limit",
    ),
    "a little more than the limit": (
        {"requests": {"cpu": "1001m"}, "limits": {"cpu": 1}},
        "requests: cpu is 1001m, over its limit of 1; lower it, or raise the limit",
    ),
    "over a limit of nothing": (
        {"requests": {"cpu": 1}, "limits": {"cpu": 0}},
        "requests: cpu is 1, over its limit of 0; lower it, or raise the limit",
    ),
    "a device": ({"limits": {"example.com/nic": 1}}, None),
    "a device asked for alone": (
        {"requests": {"example.com/nic": 1}},
        "limits: example.com/nic has a request alone, and takes the same amount as its limit",
    ),
    "fewer devices than the limit": (
        {"requests": {"example.com/nic": 1}, "limits": {"example.com/nic": 2}},
        "requests: example.com/nic must be as much as its limit, 2; 1 asked",
    ),
    "huge pages": ({"limits": {"hugepages-2Mi": "64Mi", "cpu": 1}}, None),
    "huge pages asked for alone": (
        {"requests": {"hugepages-2Mi": "64Mi", "cpu": 1}},
        "limits: hugepages-2Mi has a request alone, and takes the same amount as its limit",
    ),
    "a word that is no resource": (
        {"limits": {"gpu": 1}},
        ": gpu is no resource of a container; it is one of cpu, memory, ephemeral-storage, or VENDOR/NAME",
    ),
}


def pool_manifest(name: str, **spec: Any) -> dict[str, Any]:
    """A pool of the table, or one of another spec; what is None is left out."""
    content = {"apiVersion": names.API_VERSION, "kind": names.POOL_KIND, "metadata": {"name": name}}
    stated = {**POOLS.get(name, {}), **spec}
    return {**content, "spec": {key: value for key, value in stated.items() if value is not None}}


def environment(pod_spec: dict[str, Any], index: int) -> dict[str, str]:
    """The environment of the pod of that completion index."""
    variables = pod_spec["containers"][0]["env"]
    return {
        one["name"]: one.get("value", str(index) if "fieldRef" in one.get("valueFrom", {}) else "") for one in variables
    }


def pool_of(name):
    return BUILTIN[name] if name in BUILTIN else parse_pool(pool_manifest(name))


def job_on(pool, nodes=None, per_node=None):
    asked = {"pool": pool, "nodes": nodes, "perNode": per_node}
    return make_job().with_("spec.accelerator", {key: value for key, value in asked.items() if value}).build()


def planned(case):
    job = job_on(case.pool, case.nodes, case.per_node)
    return [child for child in children(job, place(job, pool_of(case.pool)), 1) if child["kind"] == "Job"]
