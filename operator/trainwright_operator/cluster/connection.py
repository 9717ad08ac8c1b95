"""How to reach the API server: the service account of the pod, or the current context of a kubeconfig."""

from __future__ import annotations

import base64
import json
import os
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_LIFETIME_SECONDS = 60.0
"""The kubelet renews a bound token well before it expires; reading the file once a minute is enough."""


class NoClusterError(Exception):
    """There is no cluster to talk to; the message says what was looked for."""


@dataclass
class Connection:
    """A server's address, its TLS context, and what goes into the Authorization header."""

    server: str
    tls: ssl.SSLContext | None
    token: str | None = None
    token_file: Path | None = None
    _read_at: float = -TOKEN_LIFETIME_SECONDS

    def headers(self) -> dict[str, str]:
        """Authorization for the next request; a token file is read again when its copy has grown old."""
        if self.token_file is not None and time.monotonic() - self._read_at > TOKEN_LIFETIME_SECONDS:
            self.token = self.token_file.read_text().strip()
            self._read_at = time.monotonic()
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def service_account(connection: Connection, namespace: str) -> dict[str, Any] | None:
    """Who this process is, as an owner of objects in the namespace: what has one goes when the chart is uninstalled.

    None for who is no ServiceAccount of that namespace, such as a person.
    """
    token = connection.headers().get("Authorization", "").removeprefix("Bearer ")
    try:
        payload = token.split(".")[1]
        told = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
        own = {"name": str(told["serviceaccount"]["name"]), "uid": str(told["serviceaccount"]["uid"])}
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return {"apiVersion": "v1", "kind": "ServiceAccount", **own} if told.get("namespace") == namespace else None


def connect() -> Connection:
    """In a pod the service account, else ``KUBECONFIG`` or ``~/.kube/config``; raises :class:`NoClusterError`."""
    if "KUBECONFIG" not in os.environ and (SERVICE_ACCOUNT / "token").exists():
        return in_cluster()
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    for path in paths.split(os.pathsep):
        if path and Path(path).exists():
            return from_kubeconfig(Path(path))
    raise NoClusterError(f"no cluster: not in a pod, and no kubeconfig at {paths}; set KUBECONFIG")


def in_cluster() -> Connection:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host is None:
        raise NoClusterError("no cluster: a service account is mounted, but KUBERNETES_SERVICE_HOST is not set")
    address = f"[{host}]" if ":" in host else host
    tls = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
    return Connection(f"https://{address}:{port}", tls, token_file=SERVICE_ACCOUNT / "token")


def from_kubeconfig(path: Path) -> Connection:
    """The current context with a client certificate or a token; other ways to log in are refused by name."""
    config = yaml.safe_load(path.read_text()) or {}
    context = _named(config, "contexts", "context", config.get("current-context"), path)
    cluster = _named(config, "clusters", "cluster", context["cluster"], path)
    user = _named(config, "users", "user", context["user"], path)
    for unsupported in ("exec", "auth-provider"):
        if unsupported in user:
            raise NoClusterError(
                f"{path}: user {context['user']!r} logs in by {unsupported!r}; the operator takes a client "
                "certificate or a token: run it in the cluster, or give it a kubeconfig with one of these"
            )
    token_file = Path(user["tokenFile"]) if "tokenFile" in user else None
    return Connection(cluster["server"], _tls(cluster, user, path.parent), user.get("token"), token_file)


def _named(config: dict[str, Any], section: str, kind: str, name: str | None, path: Path) -> dict[str, Any]:
    for item in config.get(section) or []:
        if item.get("name") == name:
            return dict(item.get(kind) or {})
    raise NoClusterError(f"{path}: no {kind} named {name!r}; choose one with kubectl config use-context")


def _tls(cluster: dict[str, Any], user: dict[str, Any], folder: Path) -> ssl.SSLContext | None:
    if not cluster["server"].startswith("https"):
        return None
    context = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority", folder))
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    certificate, key = _pem(user, "client-certificate", folder), _pem(user, "client-key", folder)
    if certificate and key:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:  # ssl loads client keys from files only
            both.write(f"{certificate}\n{key}")
            both.flush()
            context.load_cert_chain(both.name)
    return context


def _pem(section: dict[str, Any], name: str, folder: Path) -> str | None:
    if f"{name}-data" in section:
        return base64.b64decode(section[f"{name}-data"]).decode()
    return (folder / section[name]).read_text() if name in section else None
