"""A cluster of several nodes, made by kind; everything of it goes by the cluster's one name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster import paths, programs
from cluster.kind import engine, images, network, node_image, registry
from cluster.kube import Kube
from cluster.say import ClusterError, say, timed

NEEDED_GB = {"the first cluster": 20, "another cluster": 8}
KUBELET = {
    "kind": "KubeletConfiguration",
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "failSwapOn": False,
    "resolvConf": "/kind/resolv.conf",
}


@dataclass(frozen=True)
class Kind:
    """A control plane and ``nodes - 1`` workers."""

    name: str
    nodes: int = 3

    @property
    def state(self) -> Path:
        """Everything of this cluster that is not in Docker."""
        return paths.state_dir(self.name)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        """Where :meth:`collect_logs` puts the nodes' logs."""
        return self.state / "logs"

    @property
    def shared(self) -> Path:
        """The folder of this machine that every node has at /shared."""
        return self.state / "shared"

    @cached_property
    def docker(self) -> engine.Engine:
        """The Docker that the nodes run in."""
        return engine.engine()

    @property
    def kube(self) -> Kube:
        """A client with the administrator's rights."""
        return Kube(self.kubeconfig)

    @property
    def workers(self) -> list[str]:
        """The names of the nodes that pods go to: what a container is called, too."""
        return [f"{self.name}-worker{index or ''}" for index in [0, *range(2, self.nodes)]][: self.nodes - 1]

    @property
    def control_plane(self) -> str:
        """The name of the control plane's node."""
        return f"{self.name}-control-plane"

    def up(self) -> None:
        """Programs, images and nodes, each where it is not there yet; ready when images are on the workers."""
        self._check_disk()
        with ThreadPoolExecutor(1) as pool:
            engine.start(self.docker)
            built = pool.submit(images.build, self.docker)
            programs.build(programs.NODES)
            with timed(f"starting the cluster {self.name}"):
                self._start_nodes()
            self._bring(built.result())
        images.prune(self.docker, node_image.node_image(self.docker))

    def up_without_images(self) -> None:
        """The nodes alone, from programs and images that are there already."""
        engine.start(self.docker)
        self._start_nodes()

    def images(self) -> dict[str, str]:
        """Build what changed of the project's images and bring it to the workers; their names there."""
        self._require_up()
        return self._bring(images.build(self.docker))

    def image(self, name: str) -> str:
        """The name on the nodes of ``trainer`` or ``operator``, as it was last brought there."""
        return json.loads((self.state / "images.json").read_text())[name]

    def down(self) -> None:
        """Remove nodes, network and files; the harness's Docker too, when no other cluster needs it."""
        if not self.docker.own or self.docker.succeeds("info"):
            self._remove_containers()
            registry.remove(self.docker, self.name)
            self.docker.succeeds("network", "rm", self.name)
            if self.docker.own and not self.docker.run("ps", "--all", "--quiet"):
                engine.stop(self.docker)
        shutil.rmtree(self.state, ignore_errors=True)

    def status(self) -> list[str]:
        """Nodes, and what each holds in memory."""
        if not self.kubeconfig.exists():
            return [f"{self.name} is not up"]
        lines = self.docker.run("ps", "--all", f"--filter=name=^{self.name}-", "--format={{.Names}} {{.Status}}")
        usage = self.docker.run("stats", "--no-stream", "--format={{.Name}} {{.MemUsage}}")
        memory = dict(line.split(" ", 1) for line in usage.splitlines())
        return [f"{line}, {memory.get(line.split()[0], 'no memory')}" for line in lines.splitlines()]

    def collect_logs(self) -> Path:
        """Fetch the logs of every node's programs into one folder, for a look at what went wrong."""
        for node in (self.control_plane, *self.workers):
            for log in ("containerd", "kubelet"):
                target = self.logs / f"{node}-{log}.log"
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    command = [self.docker.client, "exec", node, "tail", "-c", "500000", f"/var/log/{log}.log"]
                    subprocess.run(command, env=self.docker.environment, stdout=file, stderr=file, check=False)
        return self.logs

    def _check_disk(self) -> None:
        paths.cache_dir().mkdir(parents=True, exist_ok=True)
        first = not (paths.cache_dir() / "registry").exists()
        needed = NEEDED_GB["the first cluster" if first else "another cluster"]
        free = shutil.disk_usage(paths.cache_dir()).free / 1e9
        if free < needed:
            raise ClusterError(
                f"{needed} GB of disk are needed in {paths.cache_dir()}, {free:.0f} are free: make room, "
                "or set XDG_CACHE_HOME to a larger disk"
            )

    def _require_up(self) -> None:
        if not self.kubeconfig.exists():
            raise ClusterError(f"{self.name} is not up: make cluster")

    def _start_nodes(self) -> None:
        running = self._running()
        if running == sorted([self.control_plane, *self.workers]) and self.kubeconfig.exists():
            registry.start(self.docker, self.name)
            self._wait_ready()
            return
        if running:
            say(f"{self.name} was left half-made: removing it first")
        with self._removed_on_failure():
            self._create()
            self._wait_ready()

    def _running(self) -> list[str]:
        """Nodes that run; those that exist and do not are started."""
        names = self.docker.run(
            "ps", "--all", f"--filter=label=io.x-k8s.kind.cluster={self.name}", "--format={{.Names}}"
        ).split()
        if names:
            self.docker.run("start", *names)
        return sorted(names)

    def _create(self) -> None:
        self._remove_nodes()
        self.state.mkdir(parents=True, exist_ok=True)
        self.shared.mkdir(exist_ok=True)
        self.shared.chmod(0o777)
        if not self.docker.succeeds("network", "inspect", self.name):
            self.docker.run("network", "create", "--driver=bridge", self.name)
        registry.start(self.docker, self.name)
        config = self.state / "kind.json"
        node = node_image.node_image(self.docker)
        config.write_text(json.dumps(self._config(node_image.archives(self.docker, node))))
        files = [f"--config={config}", f"--kubeconfig={self.kubeconfig}"]
        self._kind("create", "cluster", f"--image={node}", "--retain", *files)
        registry.introduce(self.docker, self.name, [self.control_plane, *self.workers])
        network.connect(self.docker, self.kube)
        self.kube.apply(storage_manifest())

    def _remove_nodes(self) -> None:
        self._kind("delete", "cluster", f"--kubeconfig={self.kubeconfig}")

    def _remove_containers(self) -> None:
        """All at once: most of the time goes into the many small files of their images."""
        listing = f"--filter=label=io.x-k8s.kind.cluster={self.name}"
        containers = self.docker.run("ps", "--all", "--quiet", listing).split()
        with ThreadPoolExecutor(len(containers) or 1) as pool:
            removals = [pool.submit(self.docker.run, "rm", "--force", "--volumes", name) for name in containers]
        for removal in removals:
            removal.result()

    def _kind(self, *arguments: str) -> None:
        environment = {**self.docker.environment, "KIND_EXPERIMENTAL_DOCKER_NETWORK": self.name}
        done = subprocess.run(
            [str(programs.program("kind")), *arguments, f"--name={self.name}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            log = self.state / "kind.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(done.stderr)
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise ClusterError(f"`kind {' '.join(arguments[:2])}` failed ({log} has all of it):\n{last}")

    def _config(self, archives: Path) -> dict[str, Any]:
        mounts = [
            {"hostPath": str(self.shared), "containerPath": "/shared"},
            {"hostPath": str(archives), "containerPath": "/kind/images", "readOnly": True},
        ]
        roles = ["control-plane", *["worker"] * (self.nodes - 1)]
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": {"disableDefaultCNI": True, "kubeProxyMode": "nftables", "apiServerAddress": "127.0.0.1"},
            "kubeadmConfigPatches": [json.dumps(KUBELET)],
            "nodes": [{"role": role, "extraMounts": mounts} for role in roles],
        }

    def _wait_ready(self) -> None:
        for node in (self.control_plane, *self.workers):
            self.kube.wait_condition("Node", node, "Ready", namespace=None, seconds=120)
        self.kube.wait_condition("Deployment", "provisioner", "Available", "local-path-storage", seconds=120)

    def _bring(self, built: dict[str, str]) -> dict[str, str]:
        names = {name: registry.push(self.docker, self.name, image) for name, image in built.items()}
        with timed("bringing the images to the nodes"), ThreadPoolExecutor() as pool:
            pulls = [pool.submit(self._pull, node, image) for node in self.workers for image in names.values()]
            for pull in pulls:
                pull.result()
        (self.state / "images.json").write_text(json.dumps(names))
        return names

    def _pull(self, node: str, image: str) -> None:
        self.docker.run("exec", node, "crictl", "pull", image)

    @contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        """A cluster that did not come up is removed, after its logs were fetched; TRAINWRIGHT_KEEP=1 keeps it."""
        try:
            yield
        except BaseException:
            if not os.environ.get("TRAINWRIGHT_KEEP"):
                self._remove_nodes()
                registry.remove(self.docker, self.name)
                self.docker.succeeds("network", "rm", self.name)
            raise


def storage_manifest() -> str:
    """The provisioner and the StorageClass ``shared``."""
    text = (Path(__file__).parent / "storage.yaml").read_text()
    return text.replace("@IMAGE@", node_image.STORAGE_IMAGE)
