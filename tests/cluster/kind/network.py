"""The pods' network of the harness's own nodes: a bridge on each node, and a route to every other node's pods.

kind's default brings an image that nobody here can pull, and this does what a test needs: every pod reaches every other
one under its own address.
"""

from __future__ import annotations

import json

from cluster.kind.engine import Engine
from cluster.kube import Kube, Object


def connect(docker: Engine, kube: Kube) -> None:
    """Give every node its bridge and its routes. A node keeps both when it is stopped and started."""
    nodes = {node["metadata"]["name"]: node for node in kube.wait_list("Node", None, _have_subnets, 60)}
    for name, node in nodes.items():
        others = [other for other in nodes.values() if other is not node]
        routes = "".join(f"{other['spec']['podCIDR']} {address(other)}\n" for other in others)
        write(docker, name, "/kind/routes", routes)
        docker.run("exec", name, "sh", "-c", "while read -r s v; do ip route replace $s via $v; done </kind/routes")
        write(docker, name, "/etc/cni/net.d/10-bridge.conflist", json.dumps(_bridge(node["spec"]["podCIDR"])))


def write(docker: Engine, node: str, path: str, text: str) -> None:
    """A file in a node."""
    docker.run("exec", "-i", node, "sh", "-c", f'mkdir -p "$(dirname {path})" && cat > {path}', text=text)


def address(node: Object) -> str:
    """The node's own address."""
    return next(entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")


def _have_subnets(nodes: list[Object]) -> bool:
    return bool(nodes) and all(node["spec"].get("podCIDR") and node["status"].get("addresses") for node in nodes)


def _bridge(subnet: str) -> Object:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
