"""Kueue's own controller beside a control plane, with its webhooks, as a process on loopback."""

from __future__ import annotations

import base64
import os
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

PROGRAM = os.environ.get("TRAINWRIGHT_TEST_KUEUE", "kueue")
"""Which of the Kueues in ``cluster.programs`` is run."""
_START = """set -e
root=$1 crt=$2 key=$3
shift 3
mount -t tmpfs tmpfs "$root"
for each in /*; do
  if [ -L "$each" ]; then cp -P "$each" "$root"
  elif [ -d "$each" ] && [ "$each" != /etc ]; then mkdir "$root$each"; mount --rbind "$each" "$root$each"; fi
done
for certificates in "$root/etc/kueue/metrics/certs" "$root/visibility"; do
  mkdir -p "$certificates"; cp "$crt" "$certificates/tls.crt"; cp "$key" "$certificates/tls.key"
done
exec chroot "$root" "$@"
"""
"""Kueue reads certificates from two fixed places, so it gets a root of its own with this machine's folders in it."""


_NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def obstacle() -> str:
    """Why Kueue cannot run on this machine; empty if it can."""
    if programs.missing((PROGRAM,)):
        return f"{PROGRAM} is not built yet: make cluster-tools"
    try:
        tried = subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/etc"], capture_output=True, check=False)
    except OSError as error:
        return f"Kueue needs a mount namespace: {error}"
    return f"Kueue needs a mount namespace: {tried.stderr.decode().strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Kueue:
    """Kueue on a cluster that is up; ``configuration`` is merged into its Configuration.

    Without ``webhooks`` none are registered: an API server in a container does not reach them on loopback. With
    ``visibility`` it also serves the places of the Workloads that wait.
    """

    cluster: ControlPlane | Kind
    configuration: dict[str, Any]
    webhooks: bool = True
    visibility: bool = False

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
            if self.visibility:
                self._register_visibility()

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
        root = self.state / "root"
        root.mkdir(parents=True, exist_ok=True)
        certificate = [str(root), *(str(self.state / f"webhook.{end}") for end in ("crt", "key"))]
        kueue = [str(programs.program(PROGRAM)), f"--config={self.state / 'configuration.yaml'}"]
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
        health, self_port, visibility = free_ports(3)
        (self.state / "ports").write_text(f"{health} {self_port} {visibility}")
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
            "featureGates": {"VisibilityOnDemand": self.visibility},
            **({"visibilityServer": {"bindAddress": "127.0.0.1", "bindPort": visibility}} if self.visibility else {}),
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

    def _register_visibility(self) -> None:
        """Kueue's own registration of the API, with a Service that stands for loopback."""
        port = int((self.state / "ports").read_text().split()[2])
        kube, name = self.cluster.kube, {"name": "visibility-server", "namespace": "kueue-system"}
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name["namespace"]}})
        loopback = {"type": "ExternalName", "externalName": "localhost"}
        kube.apply({"apiVersion": "v1", "kind": "Service", "metadata": name, "spec": loopback})
        manifest = _source() / "config" / "components" / "visibility" / "apiservice_v1beta2.yaml"
        registered = yaml.safe_load(manifest.read_text())
        registered["spec"]["service"] = {**name, "port": port}
        kube.apply(registered)
        kind = f"{registered['apiVersion']}/APIService"
        kube.wait_condition(kind, registered["metadata"]["name"], "Available", None, PATIENCE_SECONDS)


def _is_served(webhook: dict[str, Any]) -> bool:
    """Of Kueue's own kinds, and of the one framework that is switched on."""
    groups = {group for rule in webhook["rules"] for group in rule["apiGroups"]}
    return groups <= {"kueue.x-k8s.io", "batch"}


def _crds() -> list[Path]:
    return sorted((_source() / "config" / "components" / "crd" / "bases").glob("*.yaml"))


def _source() -> Path:
    module = programs.module_of(PROGRAM)
    return programs.source(module.folder, module.path)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
