"""What can go wrong in a data centre, as one-line calls against a kind cluster; :meth:`Faults.heal` undoes it all."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field

from cluster.kind.provider import Kind
from cluster.kube import ApiError, Object
from cluster.say import ClusterError, say

UNSCHEDULABLE = {"spec": {"unschedulable": True}}
CUT = """
add table inet cut
add chain inet cut in { type filter hook input priority -300; policy accept; }
add chain inet cut out { type filter hook output priority -300; policy accept; }
add chain inet cut through { type filter hook forward priority -300; policy accept; }
add rule inet cut in iifname "eth0" drop
add rule inet cut out oifname "eth0" drop
add rule inet cut through iifname "eth0" drop
add rule inet cut through oifname "eth0" drop
"""


@dataclass
class Faults:
    """Faults of one cluster's nodes and containers."""

    cluster: Kind
    _small: list[tuple[str, str]] = field(default_factory=list)

    def kill(self, pod: str, namespace: str, signal: str = "KILL") -> None:
        """Send a signal to the pod's first container's main process, from outside: none can be blocked by PID 1."""
        node, process = self._main_process(pod, namespace)
        self._on(node, "kill", f"-{signal}", process)

    def kill_rank(self, pod: str, namespace: str, signal: str = "KILL") -> None:
        """Send a signal to a rank in the pod: the newest child of its launcher."""
        node, process = self._main_process(pod, namespace)
        self._on(node, "kill", f"-{signal}", self._on(node, "pgrep", "-n", "-P", process).strip())

    def _main_process(self, pod: str, namespace: str) -> tuple[str, str]:
        """Of the pod's first container: its node, and its process id there."""
        found = self.cluster.kube.get("Pod", pod, namespace)
        container = found["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        node = found["spec"]["nodeName"]
        info = json.loads(self._on(node, "crictl", "inspect", container))
        return node, str(info["info"]["pid"])

    def drain(self, node: str) -> None:
        """Cordon the node and evict its pods, as `kubectl drain --ignore-daemonsets` does."""
        kube = self.cluster.kube
        kube.patch("Node", node, UNSCHEDULABLE, namespace=None)
        for pod in kube.list("Pod"):
            if pod["spec"].get("nodeName") == node and not _of_daemon_set(pod):
                self._evict(pod)

    def _evict(self, pod: Object, seconds: float = 90) -> None:
        """Evict a pod; as kubectl does, again and again while a disruption budget forbids it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.cluster.kube.evict(pod["metadata"]["name"], pod["metadata"]["namespace"])
            except ApiError as error:
                if error.code != 429 or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def uncordon(self, node: str) -> None:
        """Let pods be scheduled to the node again."""
        self.cluster.kube.patch("Node", node, {"spec": {"unschedulable": None}}, namespace=None)

    def stop(self, node: str) -> None:
        """Pull the node's plug: all of its processes are gone at once."""
        self.cluster.docker.run("kill", node)

    def start(self, node: str) -> None:
        """Start a stopped node, and wait until it is Ready."""
        self.cluster.docker.run("start", node)
        self.cluster.kube.wait_condition("Node", node, "Ready", namespace=None, seconds=120)

    def pause(self, node: str) -> None:
        """Freeze all of the node's processes: it neither answers nor ends."""
        self.cluster.docker.run("pause", node)

    def resume(self, node: str) -> None:
        """Let a frozen node go on."""
        self.cluster.docker.run("unpause", node)

    def cut(self, node: str) -> None:
        """Drop every packet between the node and the others; its pods go on, and talk to each other."""
        self.cluster.docker.run("exec", "-i", node, "nft", "-f", "-", text=CUT)

    def mend(self, node: str) -> None:
        """Undo :meth:`cut`."""
        self._on(node, "nft", "delete", "table", "inet", "cut")

    def slow(self, node: str, delay: str = "100ms", rate: str = "1mbit") -> str:
        """Delay the node's packets, or where the kernel cannot (no netem), limit their rate; returns which."""
        qdisc = ("tc", "qdisc", "replace", "dev", "eth0", "root")
        try:
            self._on(node, *qdisc, "netem", "delay", delay)
            return "netem"
        except ClusterError:
            say(f"this kernel has no netem: limiting {node} to {rate} instead of delaying by {delay}")
            self._on(node, *qdisc, "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
            return "tbf"

    def hasten(self, node: str) -> None:
        """Undo :meth:`slow`."""
        self._on(node, "tc", "qdisc", "delete", "dev", "eth0", "root")

    def restart_api_server(self) -> None:
        """End the API server; its kubelet starts it again. Returns when it is ready."""
        node = self.cluster.control_plane
        before = self._on(node, "crictl", "ps", "--quiet", "--name=kube-apiserver").split()
        self._on(node, "crictl", "stop", "--timeout=1", *before)
        deadline = time.monotonic() + 90
        while not (self.cluster.kube.ready() and self._new_api_server(before)):
            if time.monotonic() > deadline:
                raise ClusterError("the API server did not come back within 90 s")
            time.sleep(0.2)

    def small_claim(self, name: str, namespace: str, node: str, size: str = "16M") -> None:
        """A PersistentVolumeClaim on a disk of the node that is as small as one likes, for :meth:`fill`."""
        path = f"/small/{namespace}/{name}"
        self._on(node, "sh", "-c", f"mkdir -p {path} && mount -t tmpfs -o mode=777,size={size} tmpfs {path}")
        self._small.append((node, path))
        for obj in _small_volume(name, namespace, node, size, path):
            self.cluster.kube.apply(obj, namespace)

    def fill(self, name: str, namespace: str, node: str) -> None:
        """Write to the disk of a :meth:`small_claim` until nothing more fits."""
        path = f"/small/{namespace}/{name}/filler"
        self._on(node, "sh", "-c", f"cat /dev/zero >{path} 2>/dev/null; [ -s {path} ]")

    def heal(self) -> None:
        """Undo every fault that may be in force, and wait until all nodes are Ready."""
        docker, nodes = self.cluster.docker, [self.cluster.control_plane, *self.cluster.workers]
        for node in nodes:
            docker.succeeds("unpause", node)
            docker.run("start", node)
            for undo in (self.mend, self.hasten):
                with contextlib.suppress(ClusterError):  # nothing to undo
                    undo(node)
        for node, path in self._small:
            with contextlib.suppress(ClusterError):  # a restart of the node took it away
                self._on(node, "umount", path)
        for node in self.cluster.workers:
            self.cluster.kube.wait_condition("Node", node, "Ready", namespace=None, seconds=120)
            self.uncordon(node)

    def _on(self, node: str, *command: str) -> str:
        return self.cluster.docker.run("exec", node, *command)

    def _new_api_server(self, before: list[str]) -> bool:
        now = self._on(self.cluster.control_plane, "crictl", "ps", "--quiet", "--name=kube-apiserver").split()
        return bool(now) and not set(now) & set(before)


def _of_daemon_set(pod: Object) -> bool:
    return any(owner["kind"] == "DaemonSet" for owner in pod["metadata"].get("ownerReferences", []))


def _small_volume(name: str, namespace: str, node: str, size: str, path: str) -> list[Object]:
    shape = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    volume = {
        **shape,
        "capacity": {"storage": size},
        "hostPath": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        "claimRef": {"name": name, "namespace": namespace},
    }
    claim = {**shape, "volumeName": f"{namespace}-{name}", "resources": {"requests": {"storage": size}}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{namespace}-{name}"}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim},
    ]
