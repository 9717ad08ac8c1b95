"""A cluster of several nodes, made by kind; everything of it goes by the cluster's one name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster import disk, locks, paths, programs
from cluster.kind import engine, images, network, node_image, nodes, registry, store
from cluster.kube import Kube, Object
from cluster.say import ClusterError, say, timed

LAST_LOG = "if [ -f /var/log/{0}.log ]; then cat /var/log/{0}.log; else journalctl --unit={0}; fi | tail -c 500000"

UNTIL_RUNTIME = "until crictl info > /dev/null 2>&1; do sleep 0.2; done"


class PortTaken(ClusterError):
    """kind asks for a free port and gives it to Docker a little later."""


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
        return engine.engine(self.state)

    @cached_property
    def made_of(self) -> nodes.Nodes:
        """What the nodes are made of."""
        return nodes.choose(self.docker)

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
        with self._alone():
            disk.check()
            self._prepare()
            with ThreadPoolExecutor(1) as pool:
                pushed = pool.submit(self._push)
                programs.build(self.made_of.programs)
                self._start_nodes(pushed.result)
                self._pull(pushed.result())
            self._prune()

    def up_without_images(self) -> None:
        """The nodes alone, from programs and images that are there already."""
        with self._alone():
            self._prepare()
            registry.start(self.docker, self.name)
            self._start_nodes(None)

    def images(self, *more: str) -> dict[str, str]:
        """Build what changed of the project's images and bring it to the workers; their names there.

        Args:
            more: Of ``images.IMAGES``, beside those that are there; they are kept up to date from now on.
        """
        self._require_up()
        with self._alone():
            if set(more) - set(self._brought()):
                disk.check_for_more()
            return self._pull(self._push(*more))

    def image(self, name: str) -> str:
        """The name on the nodes of ``trainer``, say, as it was last brought there.

        Raises:
            KeyError: It never was.
        """
        return self._brought()[name]

    def down(self) -> None:
        """Remove nodes, network and files; the harness's Docker too, when no other cluster needs it."""
        with self._alone():
            if not self.docker.own or self.docker.succeeds("info"):
                self._empty_shared()
                self._remove_containers()
                registry.remove(self.docker, self.name)
                self.docker.succeeds("network", "rm", self.name)
            shutil.rmtree(self.state, ignore_errors=True)
            engine.stop_unused(self.docker, self.state)

    def status(self) -> list[str]:
        """Nodes, and what each holds in memory."""
        if not self.kubeconfig.exists():
            return [f"{self.name} is not up"]
        lines = self.docker.run("ps", "--all", f"--filter=name=^{self.name}-", "--format={{.Names}} {{.Status}}")
        usage = self.docker.run("stats", "--no-stream", "--format={{.Name}} {{.MemUsage}}")
        memory = dict(line.split(" ", 1) for line in usage.splitlines())
        return [f"{line}, {memory.get(line.split()[0], 'no memory')}" for line in lines.splitlines()]

    def answers(self) -> bool:
        """Whether it is up and at work: of a Docker that was killed or a machine that was restarted, files remain."""
        return self.kubeconfig.exists() and self.docker.succeeds("info") and self.kube.ready()

    def collect_logs(self) -> Path:
        """Fetch the logs of every node's programs into one folder, for a look at what went wrong."""
        for node in (self.control_plane, *self.workers):
            for log in ("containerd", "kubelet"):
                target = self.logs / f"{node}-{log}.log"
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    command = [self.docker.client, "exec", node, "sh", "-c", LAST_LOG.format(log)]
                    subprocess.run(command, env=self.docker.environment, stdout=file, stderr=file, check=False)
        return self.logs

    def _alone(self) -> AbstractContextManager[None]:
        return locks.alone(self.state, f"waiting for another command on {self.name}")

    def _require_up(self) -> None:
        if not self.kubeconfig.exists():
            raise ClusterError(f"{self.name} is not up: make cluster")

    def _prepare(self) -> None:
        engine.start(self.docker, self.state)
        if not self.docker.succeeds("network", "inspect", self.name):
            self.docker.run("network", "create", "--driver=bridge", self.name)

    def _brought(self) -> dict[str, str]:
        record = self.state / "images.json"
        return json.loads(record.read_text()) if record.exists() else {}

    def _push(self, *more: str) -> dict[str, str]:
        """Build the images and bring them to the registry; their names there."""
        built = images.build(self.docker, dict.fromkeys((*images.USUAL, *self._brought(), *more)))
        programs.build(("runc", "registry"))
        registry.start(self.docker, self.name)
        return {name: registry.push(self.docker, self.name, image) for name, image in built.items()}

    def _pull(self, pushed: dict[str, str]) -> dict[str, str]:
        with timed("bringing the images to the nodes"), ThreadPoolExecutor() as pool:
            pulls = [pool.submit(self._have, node, image) for node in self.workers for image in pushed.values()]
            for pull in pulls:
                pull.result()
        (self.state / "images.json").write_text(json.dumps(pushed))
        return pushed

    def _have(self, node: str, image: str) -> None:
        if not self.docker.succeeds("exec", node, "crictl", "inspecti", "--quiet", image):
            self.docker.run("exec", node, "crictl", "pull", image)

    def _prune(self) -> None:
        """What earlier versions left is removed from the cache and from the harness's own Docker, no other."""
        registry.prune(self.docker, self.name)
        node = self.made_of.made(self.docker)
        if not self.made_of.official:
            node_image.prune(self.docker, node)
        if self.docker.own:
            images.prune(self.docker, node)
            store.prune()

    def _start_nodes(self, pushed: Callable[[], dict[str, str]] | None) -> None:
        """``pushed`` gives the images that the nodes shall start with, as soon as they are there."""
        if self._run_again():
            return
        with self._removed_on_failure():
            node = self.made_of.made(self.docker)
            unpacked = self._store(node, pushed)
            with timed(f"starting the nodes of {self.name}"):
                self._create(node, unpacked)
                self._wait_ready()

    def _run_again(self) -> bool:
        """Whether the nodes are there, whole, and Ready; those that were stopped are started."""
        listing = f"--filter=label=io.x-k8s.kind.cluster={self.name}"
        names = self.docker.run("ps", "--all", listing, "--format={{.Names}}").split()
        if not names:
            return False
        if sorted(names) != sorted([self.control_plane, *self.workers]) or not self.kubeconfig.exists():
            say(f"{self.name} was left half-made: removing it first")
            return False
        try:
            self.docker.run("start", *names)
            self._wait_runtimes(names)
            self._wait_ready()
        except ClusterError as error:
            say(f"{self.name} does not run again, and is made anew: {error}")
            return False
        return True

    def _store(self, node: str, pushed: Callable[[], dict[str, str]] | None) -> Path | None:
        if not self.docker.own or self.made_of.official:
            return None
        if pushed is None:
            return store.newest(self.docker, node)
        names = pushed()
        return store.prepared(self.docker, self.name, node, [*map(images.local_name, names)], [*names.values()])

    def _create(self, node: str, unpacked: Path | None) -> None:
        """The kubeconfig gets its place at the end: a cluster that has one is whole."""
        self.kubeconfig.unlink(missing_ok=True)
        self._remove_nodes()
        self.shared.mkdir(exist_ok=True)
        self.shared.chmod(0o777)
        config = self.state / "kind.json"
        config.write_text(json.dumps(self._config(self.made_of.mounts(self.docker, node, unpacked))))
        create = ("create", "cluster", f"--image={node}", "--retain", f"--config={config}")
        try:
            self._kind(*create)
        except PortTaken as error:
            say(f"{error}: once more, with another")
            self._remove_nodes()
            self._kind(*create)
        kube = Kube(self._new_kubeconfig)
        if not self.made_of.official:
            network.connect(self.docker, kube, self.nodes)
        kube.apply(storage_manifest(self.made_of.storage_image))
        self._new_kubeconfig.rename(self.kubeconfig)

    @property
    def _new_kubeconfig(self) -> Path:
        return self.state / "kubeconfig.new"

    def _remove_nodes(self) -> None:
        self._kind("delete", "cluster")

    def _empty_shared(self) -> None:
        """By a node: what pods wrote belongs to the users of theirs, and need not be ours to remove."""
        self.docker.succeeds("exec", self.control_plane, "find", "/shared", "-mindepth", "1", "-delete")

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
            [str(programs.program("kind")), *arguments, f"--name={self.name}", f"--kubeconfig={self._new_kubeconfig}"],
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
            taken = re.search(r"listen tcp4? (\S+): bind: address already in use|Bind for (\S+) failed", done.stderr)
            if taken:
                raise PortTaken(f"another process took {taken[1] or taken[2]}, which kind had chosen")
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise ClusterError(f"`kind {' '.join(arguments[:2])}` failed ({log} has all of it):\n{last}")

    def _config(self, mounts: list[dict[str, Any]]) -> dict[str, Any]:
        mounts = [
            {"hostPath": str(self.shared), "containerPath": "/shared"},
            {"hostPath": str(registry.hosts(self.name)), "containerPath": "/etc/containerd/certs.d", "readOnly": True},
            *mounts,
        ]
        roles = ["control-plane", *["worker"] * (self.nodes - 1)]
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            **self.made_of.settings,
            "nodes": [{"role": role, "extraMounts": mounts} for role in roles],
        }

    def _wait_runtimes(self, names: list[str]) -> None:
        """For a while after they were started again, the API server takes all nodes for Ready as they once were."""
        for node in names:
            self.docker.run("exec", node, "timeout", "60", "sh", "-c", UNTIL_RUNTIME)

    def _wait_ready(self) -> None:
        for node in (self.control_plane, *self.workers):
            self.kube.wait_condition("Node", node, "Ready", namespace=None, seconds=120)
        self.kube.wait_for("DaemonSet", "kube-proxy", "kube-system", self._on_every_node, 120, "to run on every node")
        for deployment, namespace in (("coredns", "kube-system"), ("provisioner", "local-path-storage")):
            self.kube.wait_condition("Deployment", deployment, "Available", namespace, seconds=120)

    def _on_every_node(self, daemons: Object) -> bool:
        return daemons["status"].get("numberReady") == self.nodes

    @contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        """A cluster that did not come up is removed, after its logs were fetched; TRAINWRIGHT_KEEP=1 keeps it."""
        try:
            yield
        except BaseException:
            self.collect_logs()
            if not os.environ.get("TRAINWRIGHT_KEEP"):
                self._remove_nodes()
                registry.remove(self.docker, self.name)
                self.docker.succeeds("network", "rm", self.name)
            raise


def storage_manifest(image: str) -> str:
    """The provisioner, which also makes and removes folders by its image, and the StorageClass ``shared``."""
    return (Path(__file__).parent / "storage.yaml").read_text().replace("@IMAGE@", image)
