"""The pods' network of the harness's own nodes: a bridge on each node, and a route to every other node's pods.

kind's default brings an image that nobody here can pull, and this does what a test needs: every pod reaches every other
one under its own address.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from cluster.kind.engine import Engine
from cluster.kube import Kube, Object

CONNECT = """
read -r bridge
cat >/kind/routes
while read -r subnet via; do ip route replace "$subnet" via "$via"; done </kind/routes
mkdir -p /etc/cni/net.d
printf '%s' "$bridge" >/etc/cni/net.d/10-bridge.conflist
"""


def connect(docker: Engine, kube: Kube, count: int) -> None:
    """Give each of the ``count`` nodes its bridge and its routes. It keeps both when it is stopped and started."""
    nodes = kube.wait_list("Node", None, lambda found: len(found) == count and all(map(_has_subnet, found)), 120)
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(_connect, docker, node, nodes) for node in nodes]:
            done.result()


def _connect(docker: Engine, node: Object, nodes: list[Object]) -> None:
    """Its routes first: with the bridge's configuration, the node is Ready."""
    routes = "".join(f"{other['spec']['podCIDR']} {address(other)}\n" for other in nodes if other is not node)
    bridge = json.dumps(_bridge(node["spec"]["podCIDR"]))
    docker.run("exec", "-i", node["metadata"]["name"], "sh", "-ec", CONNECT, text=f"{bridge}\n{routes}")


def address(node: Object) -> str:
    """The node's own address."""
    return next(entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")


def _has_subnet(node: Object) -> bool:
    return bool(node["spec"].get("podCIDR") and node["status"].get("addresses"))


def _bridge(subnet: str) -> Object:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
