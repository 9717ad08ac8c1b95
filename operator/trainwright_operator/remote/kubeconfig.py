"""A kubeconfig, read as kubectl reads it.

The official client knows servers and credentials. What it leaves to others stands here: a context that is chosen while
the current one is missing or stale, for whom requests are made, and hosts that no proxy is meant for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainwright_operator.remote.errors import RemoteError

Headers = tuple[tuple[str, str], ...]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOOPBACK = "localhost,127.0.0.0/8,::1"
HEADER_BYTES = "!#$&'*+-.^_`|~"
"""Beside letters and digits, what the name of a header may hold; `%` is left out, for it begins what is escaped."""


@dataclass(frozen=True)
class Access:
    """What a context says besides the server and the credentials."""

    namespace: str | None
    headers: Headers = ()


def configure(configuration: Any, kubeconfig: str | None, context: str | None) -> Access:
    """Fill the configuration in."""
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if any(Path(path).exists() for path in paths.split(os.pathsep) if path):
        return _of_files(configuration, paths, context)
    if kubeconfig or not (SERVICE_ACCOUNT / "token").exists():
        raise RemoteError(f"no cluster: there is no kubeconfig at {paths}; set KUBECONFIG or --kubeconfig")
    from kubernetes import config as kubeconfigs

    official: Any = kubeconfigs  # it has no types
    official.load_incluster_config(client_configuration=configuration)
    _bypass_proxy(configuration)
    return Access((SERVICE_ACCOUNT / "namespace").read_text().strip())


def _of_files(configuration: Any, paths: str, context: str | None) -> Access:
    from kubernetes.config import kube_config

    official: Any = kube_config
    read = official.KubeConfigMerger(paths)
    contexts = _named(read.config, "context")
    name = context or _current(read.config_files.values())
    if name not in contexts:
        there = ", ".join(map(str, contexts)) or "none"
        raise RemoteError(f"no context named {name!r} in {paths}; there are {there}")
    official.KubeConfigLoader(read.config, name, config_base_path=None).load_and_set(configuration)
    chosen = contexts[name]
    if not _named(read.config, "cluster")[chosen["cluster"]].get("proxy-url"):
        _bypass_proxy(configuration)
    user = _named(read.config, "user").get(chosen.get("user", ""), {})
    return Access(chosen.get("namespace") or None, impersonation(user))


def _named(config: Any, kind: str) -> dict[str, Mapping[str, Any]]:
    """The contexts, clusters or users of all files by name."""
    return {one.value["name"]: one.value.get(kind) or {} for one in config.value[f"{kind}s"]}


def _current(files: Iterable[Mapping[str, Any]]) -> str:
    """That of the first file which has one; the official client takes the last file's."""
    found = next((name for file in files if (name := file.get("current-context"))), None)
    if found is None:
        raise RemoteError(
            "the kubeconfig has no current context; choose one: kubectl config use-context NAME, or --context NAME"
        )
    return str(found)


def _bypass_proxy(configuration: Any) -> None:
    """The environment's proxy is not for the hosts of NO_PROXY, nor for this machine; a `proxy-url` is for its host."""
    from kubernetes.client import rest

    official: Any = rest
    spared = ",".join(filter(None, (configuration.no_proxy, LOOPBACK)))
    if official.should_bypass_proxies(configuration.host, spared):
        configuration.proxy = None


def impersonation(user: Mapping[str, Any]) -> Headers:
    """For whom the requests of a user are made; left out, they would show what this other one may not see."""
    uid, groups, extra = (user.get(key) for key in ("as-uid", "as-groups", "as-user-extra"))
    if not user.get("as"):
        if uid or groups or extra:
            raise RemoteError("the kubeconfig's user has as-uid, as-groups or as-user-extra, and no `as`: add it")
        return ()
    said = [("User", user["as"]), *([("Uid", uid)] if uid else [])]
    said += [("Group", group) for group in groups or ()]
    said += [(f"Extra-{quote(key, HEADER_BYTES)}", value) for key, values in (extra or {}).items() for value in values]
    return tuple((f"Impersonate-{name}", _as_bytes(value)) for name, value in said)


def _as_bytes(value: object) -> str:
    """UTF-8 on the wire, where Python's HTTP writes Latin-1."""
    return str(value).encode().decode("latin-1")
