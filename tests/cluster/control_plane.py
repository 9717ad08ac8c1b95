"""The control plane alone: etcd, the API server, the controllers and the scheduler as processes on loopback.

No root is needed and nothing is listened on but 127.0.0.1. Nodes are simulated by kwok, with any capacity one likes:
the scheduler and the Job controller are the real ones, and pods run for as long and end as their annotations say.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cluster import kubeconfig, locks, paths, programs
from cluster.kube import ApiError, Kube
from cluster.pki import Authority
from cluster.process import Daemon, resident_mib
from cluster.say import ClusterError, say, timed
from cluster.simulated import STAGES, simulated_node

PORTS = {
    "etcd": ("etcd", "etcd-peer"),
    "kube-apiserver": ("api",),
    "kube-controller-manager": ("controllers",),
    "kube-scheduler": ("scheduler",),
    "kwok": ("kwok",),
}
"""What each program listens on."""
USERS = {
    "admin": ("kubernetes-admin", "system:masters"),
    # A service account for each controller would take 4 s of the start; one user for all needs all rights.
    "kube-controller-manager": ("system:kube-controller-manager", "system:masters"),
    "kube-scheduler": ("system:kube-scheduler", None),
}
FRONT_PROXY = "front-proxy"
"""As whom the API server asks another process that serves a part of the API."""
HEALTH = {
    "kube-controller-manager": ("https", "controllers"),
    "kube-scheduler": ("https", "scheduler"),
    "kwok": ("http", "kwok"),
}
GANG = "GenericWorkload=true"
PATIENCE_SECONDS = 120
"""All of it takes 4 s together on an idle machine, and a minute on a very busy one."""


@dataclass(frozen=True)
class ControlPlane:
    """A control plane called ``name`` with ``nodes`` simulated nodes.

    With ``gangs``, the API server serves PodGroup and the scheduler starts a group's pods together or not at all.
    With ``unlimited``, controllers and scheduler send what they can: their own limits are 20 and 50 requests a second.
    """

    name: str
    nodes: int = 3
    gangs: bool = False
    unlimited: bool = False

    @property
    def state(self) -> Path:
        """Everything of this cluster."""
        return paths.state_dir(self.name)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        """One log for each program."""
        return self.state / "logs"

    @property
    def kube(self) -> Kube:
        """A client with the administrator's rights."""
        return Kube(self.kubeconfig)

    def up(self) -> None:
        """Start what does not run; ready when a pod could be created and scheduled."""
        absent = programs.missing(programs.CONTROL_PLANE)
        if absent:
            raise ClusterError(f"{', '.join(absent)} not built yet: make cluster-tools")
        with locks.alone(self.state, f"waiting for another command on {self.name}"):
            self._give_up_taken_ports()
            with timed(f"starting the control plane {self.name}"):
                self._prepare()
                try:
                    self._start()
                except BaseException:
                    self._stop()
                    raise

    def down(self) -> None:
        """End the programs and remove the state folder."""
        with locks.alone(self.state, f"waiting for another command on {self.name}"):
            self._stop()
            shutil.rmtree(self.state, ignore_errors=True)

    def collect_logs(self) -> Path:
        """They are where they are written."""
        return self.logs

    def status(self) -> list[str]:
        """Each program with its process id and memory."""
        rows = [(d.name, d.pid()) for d in self.daemons()] if self._made() else []
        lines = [
            f"{name:<24} {f'pid {pid}, {resident_mib(pid):.0f} MiB' if pid else 'does not run'}" for name, pid in rows
        ]
        total = sum(resident_mib(pid) for _, pid in rows if pid)
        return [*lines, f"{'in all':<24} {total:.0f} MiB"] if rows else [f"{self.name} is not up"]

    def give_way(self) -> None:
        """Let what else runs here go first, as if this were on machines of its own."""
        for daemon in self.daemons():
            daemon.give_way()

    def add_node(self, node: dict[str, Any]) -> None:
        """Add a simulated node, see :func:`cluster.simulated.simulated_node`; one that is there stays as it is."""
        try:
            self.kube.create(node)  # an apply would drop the status, and with it what the node can hold
        except ApiError as error:
            if error.code != 409:
                raise

    def restart_api_server(self) -> None:
        """End the API server and start it again on the same port; returns when it is ready."""
        self.stop_api_server()
        self.start_api_server()

    def stop_api_server(self) -> None:
        """End the API server: every request is refused until :meth:`start_api_server`."""
        self._daemon("kube-apiserver").stop(grace=1)  # it would wait for its watchers to go

    def start_api_server(self) -> None:
        """Start the API server and return when it is ready."""
        server = self._daemon("kube-apiserver")
        server.start()
        server.wait_ready(self._api_ready, PATIENCE_SECONDS)

    def daemons(self) -> list[Daemon]:
        """The programs, in the order in which they start."""
        commands = {
            "etcd": self._etcd(),
            "kube-apiserver": self._api_server(),
            "kube-controller-manager": self._controllers(),
            "kube-scheduler": self._scheduler(),
            "kwok": self._kwok(),
        }
        return [Daemon(name, [str(programs.program(name)), *flags], self.state) for name, flags in commands.items()]

    def _daemon(self, name: str) -> Daemon:
        return next(daemon for daemon in self.daemons() if daemon.name == name)

    def _give_up_taken_ports(self) -> None:
        """Ports are chosen once, and by the next start one can be somebody else's."""
        down = [daemon for daemon in self.daemons() if not daemon.alive()] if self._made() else []
        ports = [(daemon.name, self._ports[name]) for daemon in down for name in PORTS[daemon.name]]
        taken = [f"{port} of {name}" for name, port in ports if not _is_free(port)]
        if taken:
            say(f"another process has taken port {', '.join(taken)}: making {self.name} anew, on free ports")
            self._stop()
            (self.state / "ports.json").unlink()

    def _made(self) -> bool:
        return (self.state / "ports.json").exists()

    def _prepare(self) -> None:
        if self._made():
            return
        for left in self.state.iterdir():  # by an interrupted start
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.state.chmod(0o700)
        authority = Authority.create(self._pki)
        authority.issue_server("api")
        authority.issue_client(FRONT_PROXY, FRONT_PROXY)
        (self.state / "stages.yaml").write_text(STAGES)
        names = [name for several in PORTS.values() for name in several]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        for stem, (user, group) in USERS.items():
            authority.issue_client(stem, user, group)
            path = self.kubeconfig if stem == "admin" else self.state / f"{stem}.kubeconfig"
            kubeconfig.write(path, f"https://127.0.0.1:{ports['api']}", self._pki, stem, self.name)
        (self.state / "ports.json").write_text(json.dumps(ports))

    def _start(self) -> None:
        etcd, api, *others = self.daemons()
        etcd.start()
        api.start()  # it waits for etcd by itself
        api.wait_ready(self._api_ready, PATIENCE_SECONDS)
        for daemon in others:
            daemon.start()
        for index in range(self.nodes):
            self.add_node(simulated_node(f"node-{index}"))
        for daemon in others:
            daemon.wait_ready(partial(self._healthy, daemon), PATIENCE_SECONDS)
        self.kube.wait_for("ServiceAccount", "default", "default", seconds=PATIENCE_SECONDS)
        for index in range(self.nodes):
            self.kube.wait_condition("Node", f"node-{index}", "Ready", namespace=None, seconds=PATIENCE_SECONDS)

    def _stop(self) -> None:
        if self._made():
            for daemon in reversed(self.daemons()):
                daemon.stop()

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """Controllers and scheduler make up a certificate at each start; only their health is asked, on loopback."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    @property
    def _ports(self) -> dict[str, int]:
        return json.loads((self.state / "ports.json").read_text())

    def _healthy(self, daemon: Daemon) -> bool:
        scheme, port = HEALTH[daemon.name]
        return _answers(f"{scheme}://127.0.0.1:{self._ports[port]}/healthz", self._trust)

    def _api_ready(self) -> bool:
        return self.kube.ready()

    @property
    def _pki(self) -> Path:
        return self.state / "pki"

    def _etcd(self) -> list[str]:
        client = f"http://127.0.0.1:{self._ports['etcd']}"
        peer = f"http://127.0.0.1:{self._ports['etcd-peer']}"
        return [
            f"--data-dir={self.state / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nothing here outlives the machine
            "--log-level=warn",
        ]

    def _api_server(self) -> list[str]:
        pki = self._pki
        flags = [
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['api']}",
            f"--tls-cert-file={pki / 'api.crt'}",
            f"--tls-private-key-file={pki / 'api.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            f"--requestheader-client-ca-file={pki / 'ca.crt'}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki / f'{FRONT_PROXY}.crt'}",
            f"--proxy-client-key-file={pki / f'{FRONT_PROXY}.key'}",
            "--external-hostname=localhost",
            "--allow-privileged",
            "--endpoint-reconciler-type=none",  # it refuses to publish a loopback address
        ]
        return [*flags, *self._gang_flags("--runtime-config=scheduling.k8s.io/v1beta1=true")]

    def _controllers(self) -> list[str]:
        pki = self._pki
        return [
            f"--kubeconfig={self.state / 'kube-controller-manager.kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['controllers']}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--service-account-private-key-file={pki / 'service-accounts.key'}",
            "--leader-elect=false",
            "--node-monitor-grace-period=8s",  # a lost node is noticed within the patience of a test
            "--node-monitor-period=1s",
            *self._gang_flags(),
            *self._rate_flags(),
        ]

    def _scheduler(self) -> list[str]:
        return [
            f"--kubeconfig={self.state / 'kube-scheduler.kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['scheduler']}",
            "--leader-elect=false",
            *self._rate_flags(),
            *self._gang_flags(),
        ]

    def _rate_flags(self) -> list[str]:
        return ["--kube-api-qps=1000", "--kube-api-burst=2000"] if self.unlimited else []

    def _kwok(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--config={self.state / 'stages.yaml'}",
            "--manage-all-nodes",
            "--node-lease-duration-seconds=4",
            f"--server-address=127.0.0.1:{self._ports['kwok']}",
        ]

    def _gang_flags(self, *more: str) -> list[str]:
        return [f"--feature-gates={GANG}", *more] if self.gangs else []


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, all different; loopback only."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held_socket.getsockname()[1] for held_socket in held]
    for held_socket in held:
        held_socket.close()
    return ports


def _is_free(port: int) -> bool:
    """Whether it can be listened on, now or in a moment: a killed program's port goes a little later than it does."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            return True
        time.sleep(0.05)
    return False


def _answers(url: str, trust: ssl.SSLContext) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return urllib.request.urlopen(url, timeout=2, context=trust).status == 200
    except (urllib.error.URLError, OSError):
        return False
