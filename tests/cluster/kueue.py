"""Kueue's own controller beside a control plane, with its webhooks, as a process on loopback."""

from __future__ import annotations

import base64
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import programs
from cluster.control_plane import PATIENCE_SECONDS, ControlPlane, free_ports
from cluster.kind.provider import Kind
from cluster.pki import Authority
from cluster.process import Daemon
from cluster.say import timed

MODULE = "sigs.k8s.io/kueue"
_CERTIFICATES = "/etc/kueue/metrics/certs"
"""Where Kueue looks for the certificate of its metrics; it cannot be told another place."""
_START = (
    f'mount -t tmpfs tmpfs /etc && mkdir -p {_CERTIFICATES} && cp "$1" {_CERTIFICATES}/tls.crt && '
    f'cp "$2" {_CERTIFICATES}/tls.key && shift 2 && exec "$@"'
)
"""Gives the process an /etc of its own, so that no file of this machine is written."""


_NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def obstacle() -> str:
    """Why Kueue cannot run on this machine; empty if it can."""
    if programs.missing(("kueue",)):
        return "Kueue is not built yet: make cluster-tools"
    try:
        tried = subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/etc"], capture_output=True, check=False)
    except OSError as error:
        return f"Kueue needs a mount namespace: {error}"
    return f"Kueue needs a mount namespace: {tried.stderr.decode().strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Kueue:
    """Kueue on a cluster that is up; ``configuration`` is merged into its Configuration.

    Without ``webhooks`` none are registered: an API server in a container does not reach them on loopback.
    """

    cluster: ControlPlane | Kind
    configuration: dict[str, Any]
    webhooks: bool = True

    @property
    def state(self) -> Path:
        return self.cluster.state / "kueue"

    @property
    def log(self) -> Path:
        return self.state / "logs" / "kueue.log"

    def up(self) -> None:
        """Install the CRDs, start the controller and register its webhooks; returns when it answers."""
        with timed("starting Kueue"):
            self.state.mkdir(parents=True, exist_ok=True)
            self._install_crds()
            self._write_configuration()
            daemon = self.daemon()
            daemon.start()
            daemon.wait_ready(self._ready, PATIENCE_SECONDS)
            if self.webhooks:
                self._register_webhooks()

    def reconfigure(self) -> None:
        """Start it anew with this configuration, on the ports and with the certificates that it had."""
        self.daemon().stop()
        path = self.state / "configuration.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **self.configuration}))
        self.again()

    def down(self) -> None:
        self.daemon().stop()

    def kill(self) -> None:
        """End it as a node that vanishes would."""
        self.daemon().kill()

    def again(self) -> None:
        """Start it again after :meth:`kill`."""
        daemon = self.daemon()
        daemon.start()
        daemon.wait_ready(self._ready, PATIENCE_SECONDS)

    def daemon(self) -> Daemon:
        certificate = [str(self.state / f"webhook.{end}") for end in ("crt", "key")]
        kueue = [str(programs.program("kueue")), f"--config={self.state / 'configuration.yaml'}"]
        command = [*_NAMESPACE, "sh", "-c", _START, "sh", *certificate, *kueue]
        return Daemon("kueue", [*command, f"--kubeconfig={self.cluster.kubeconfig}"], self.state)

    def remove_crds(self) -> None:
        """Remove every trace of it from a cluster that goes on."""
        for path in _crds():
            (name,) = (one["metadata"]["name"] for one in yaml.safe_load_all(path.read_text()))
            self.cluster.kube.delete("CustomResourceDefinition", name, None)

    def _install_crds(self) -> None:
        for path in _crds():
            for crd in self.cluster.kube.apply(path):
                self.cluster.kube.wait_condition(
                    "CustomResourceDefinition", crd["metadata"]["name"], "Established", None
                )

    def _write_configuration(self) -> None:
        authority = Authority.create(self.state)
        authority.issue_server("webhook")
        for end in ("crt", "key"):
            shutil.copy(self.state / f"webhook.{end}", self.state / f"tls.{end}")
        health, self_port = free_ports(2)
        (self.state / "ports").write_text(f"{health} {self_port}")
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": "kueue-system",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self_port, "certDir": str(self.state)},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "clientConnection": {"qps": 300, "burst": 500},
            "integrations": {"frameworks": ["batch/job"]},
            "featureGates": {"VisibilityOnDemand": False},
            **self.configuration,
        }
        (self.state / "configuration.yaml").write_text(yaml.safe_dump(configuration))

    def _ready(self) -> bool:
        health = (self.state / "ports").read_text().split()[0]
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{health}/readyz", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _register_webhooks(self) -> None:
        """Kueue's own registrations, with the address on loopback in place of its Service."""
        port = (self.state / "ports").read_text().split()[1]
        bundle = (self.state / "ca.crt").read_bytes()
        manifests = _source() / "config" / "components" / "webhook" / "manifests.yaml"
        for found in yaml.safe_load_all(manifests.read_text()):
            kept = [one for one in found["webhooks"] if _is_served(one)]
            for one in kept:
                path = one["clientConfig"]["service"]["path"]
                one["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": _base64(bundle)}
            self.cluster.kube.create({**found, "webhooks": kept})


def _is_served(webhook: dict[str, Any]) -> bool:
    """Of Kueue's own kinds, and of the one framework that is switched on."""
    groups = {group for rule in webhook["rules"] for group in rule["apiGroups"]}
    return groups <= {"kueue.x-k8s.io", "batch"}


def _crds() -> list[Path]:
    return sorted((_source() / "config" / "components" / "crd" / "bases").glob("*.yaml"))


def _source() -> Path:
    return programs.source("kueue", MODULE)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
