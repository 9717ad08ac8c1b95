"""``trainwright pools --kueue``: the ResourceFlavors of Kueue that correspond to AcceleratorPools."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from trainwright_operator.api import manifest, names
from trainwright_operator.api.spec import AcceleratorPool, parse_pool
from trainwright_operator.commands.loading import check
from trainwright_operator.core.placement.pools import VENDORS
from trainwright_operator.core.queues.workload import VERSION

DONE, INVALID = 0, 2
Object = dict[str, Any]
BASIC = ("cpu", "memory")


def main(options: Namespace) -> int:
    checked = check(options.files)
    pools = [parse_pool(one.content) for one in checked.of_kind(names.POOL_KIND)]
    mistakes = checked.mistakes or ([] if pools else [f"{', '.join(options.files)}: holds no {names.POOL_KIND}"])
    for line in mistakes:
        print(line, file=sys.stderr)
    if mistakes:
        return INVALID
    print(manifest.write(*map(flavor, pools), cluster_queue(options.name, pools)), end="")
    uncounted = [pool.name for pool in pools if pool.device_class_name and not pool.quota_resource]
    if uncounted:
        named = ", ".join(uncounted)
        print(f"not counted: the devices of {named}, which have a deviceClassName; set quotaResource", file=sys.stderr)
    print(f"set each nominalQuota of ClusterQueue {options.name}, then make a LocalQueue for it", file=sys.stderr)
    return DONE


def flavor(pool: AcceleratorPool) -> Object:
    """The ResourceFlavor of the pool's nodes. Its pods tolerate the nodes' taints already, by their pool."""
    labels = {**VENDORS[pool.vendor].node_labels(pool), **pool.node_selector}
    return _object("ResourceFlavor", pool.name, {"nodeLabels": labels} if labels else {})


def cluster_queue(name: str, pools: Iterable[AcceleratorPool]) -> Object:
    """A ClusterQueue over all flavors, whose quota is 0 until somebody sets it.

    A resource belongs to one group of flavors, and a group covers the same resources in each of its flavors.
    """
    pools = list(pools)
    devices = [pool.quota_resource or VENDORS[pool.vendor].resource_of(pool) for pool in pools]
    own = [resource for pool, device in zip(pools, devices, strict=True) for resource in (device, *pool.rdma_resources)]
    covered = [*BASIC, *dict.fromkeys(resource for resource in own if resource)]
    resources = [{"name": resource, "nominalQuota": 0} for resource in covered]
    group = {"coveredResources": covered, "flavors": [{"name": pool.name, "resources": resources} for pool in pools]}
    return _object("ClusterQueue", name, {"namespaceSelector": {}, "resourceGroups": [group]})


def _object(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
