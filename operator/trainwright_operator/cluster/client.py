"""A small client of the API server for the reconciler: list in chunks, apply, patch a status, delete.

It has one session and one retry rule: 429 with Retry-After, transport errors and 5xx are retried a few times. The
caller handles everything else, by :class:`ApiError`.

The server comes from the service account of the pod, or from the current context of a kubeconfig.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp.http_exceptions import HttpProcessingError

from trainwright_operator.api.names import FIELD_MANAGER
from trainwright_operator.cluster.cache import slim

TRIES = 4
PATIENCE_SECONDS = 10.0
"""The maximum total wait between retries of a request, even if the server asks for more: it blocks a worker."""
CHUNK = 500
LONGEST_LINE = 2**22
"""Maximum bytes of an object in a watch; etcd accepts 1.5 MiB."""
TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A resource in the API: ``apiVersion``, kind, plural, and whether it is namespaced."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        root = "/api/" if "/" not in self.api_version else "/apis/"
        parts = [root + self.api_version]
        if namespace and self.namespaced:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


_UNSERVED = ("404 page not found", "the server could not find the requested resource")


class ApiError(Exception):
    """An error response of the API server: HTTP code, reason and message."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after

    @property
    def is_verdict(self) -> bool:
        """An immediate retry would fail again: it needs a change by a person, or time."""
        return (
            self.code in (400, 403, 422)
            or self.is_unserved
            or (self.code == 500 and "failed calling webhook" in self.message)
        )

    @property
    def is_unserved(self) -> bool:
        """The path does not exist: the cluster does not serve this version of the kind, or not the kind at all."""
        return self.code == 404 and any(text in self.message for text in _UNSERVED)

    @property
    def is_of_lost_namespace(self) -> bool:
        """The namespace does not exist, or is being deleted."""
        gone = self.code == 404 and self.message.startswith('namespaces "')
        return gone or (self.code == 403 and "because it is being terminated" in self.message)


@dataclass(frozen=True)
class Listing:
    """A complete list and its resourceVersion."""

    items: list[Object]
    version: int


class Api:
    """Use as an async context manager. ``observe(verb, code)`` is called for every response, for metrics."""

    def __init__(self, connection: Connection, observe: Callable[[str, int], None] = lambda verb, code: None) -> None:
        self._connection = connection
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._connection.tls or False, limit=32, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return await self._send("GET", resource.path(namespace, name))

    async def read(self, path: str, **params: str) -> Object:
        """What is served at a path that belongs to no resource of objects."""
        return await self._send("GET", path, params=params)

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        selector: str = "",
        fields: str = "",
        tries: int = TRIES,
    ) -> Listing:
        """All objects that match the label and field selectors; a list that expires (410) is restarted once."""
        for last in (False, True):
            try:
                return await self._whole(resource, namespace, selector, fields, tries)
            except ApiError as error:
                if error.code != 410 or last:
                    raise
        raise AssertionError("unreachable")

    async def check_list(self, resource: Resource, namespace: str | None = None) -> None:
        """List at most one object; raises :class:`ApiError` if that is refused."""
        await self._send("GET", resource.path(namespace), params={"limit": "1"})

    async def kinds(self, version: str) -> set[str]:
        """The kinds of ``group/version``; empty if it is not served."""
        try:
            return {one["kind"] for one in (await self._send("GET", f"/apis/{version}"))["resources"]}
        except ApiError as error:
            if error.code != 404:
                raise
            return set()

    async def versions(self, group: str) -> tuple[str, ...]:
        """The versions of an API group, as ``v1beta2``; empty if it is not served."""
        try:
            return tuple(one["version"] for one in (await self._send("GET", f"/apis/{group}"))["versions"])
        except ApiError as error:
            if error.code != 404:
                raise
            return ()

    async def watch(
        self, resource: Resource, namespace: str | None, selector: str, version: int, seconds: int
    ) -> AsyncIterator[tuple[str, Object]]:
        """Type and object of each change after ``version``, for the given seconds.

        A ``BOOKMARK`` has a version and no object, so that a watch without changes can be continued.
        """
        params = {"watch": "1", "resourceVersion": str(version), "timeoutSeconds": str(seconds)}
        params["allowWatchBookmarks"] = "true"
        if selector:
            params["labelSelector"] = selector
        assert self._session is not None, "use `async with Api(...)`"
        url, headers = self._connection.server + resource.path(namespace), self._connection.headers()
        patience = aiohttp.ClientTimeout(total=seconds + 30, connect=5)
        async with self._session.get(
            url, params=params, headers=headers, timeout=patience, read_bufsize=LONGEST_LINE
        ) as response:
            self._observe("WATCH", response.status)
            if response.status != 200:
                raise _error(response.status, await response.read(), None)
            async for kind, obj in _events(response.content):
                if kind == "ERROR":
                    raise _error(obj.get("code", 500), json.dumps(obj).encode(), None)
                yield kind, obj

    async def create(self, resource: Resource, obj: Object) -> Object:
        path = resource.path(obj["metadata"].get("namespace"))
        return await self._send("POST", path, obj, params={"fieldManager": FIELD_MANAGER})

    async def replace(self, resource: Resource, obj: Object) -> Object:
        """Replace the object that ``obj`` was read from; 409 if it has changed since."""
        meta = obj["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"])
        return await self._send("PUT", path, obj, params={"fieldManager": FIELD_MANAGER})

    async def apply(self, resource: Resource, obj: Object) -> Object:
        """Server-side apply with force, under the operator's field manager."""
        meta = obj["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"])
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._send("PATCH", path, obj, content_type=APPLY, params=params)

    async def patch_status(self, resource: Resource, namespace: str | None, name: str, patch: Object) -> Object:
        """A merge patch of the status subresource; set ``metadata.resourceVersion`` to fail on conflict."""
        path = resource.path(namespace, name, "status")
        return await self._send("PATCH", path, patch, content_type=MERGE, params={"fieldManager": FIELD_MANAGER})

    async def patch(self, resource: Resource, namespace: str | None, name: str, patch: Object) -> Object:
        path = resource.path(namespace, name)
        return await self._send("PATCH", path, patch, content_type=MERGE, params={"fieldManager": FIELD_MANAGER})

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        uid: str | None = None,
        propagation: str = "Background",
    ) -> None:
        """Delete the object, only with ``uid`` if given; no error if it does not exist."""
        body: Object = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._send("DELETE", resource.path(namespace, name), body)
        except ApiError as error:
            if error.code != 404:
                raise

    async def _whole(
        self, resource: Resource, namespace: str | None, selector: str, fields: str, tries: int
    ) -> Listing:
        """Each chunk is reduced when it arrives, so that the full list is never in memory."""
        items: list[Object] = []
        version = 0
        async for chunk in self._chunks(resource, namespace, selector, fields, tries):
            if not {"items", "metadata"} <= chunk.keys():
                raise ApiError(502, "BadGateway", f"not a list of {resource.plural}: {chunk!r:.200}")
            items += map(slim, chunk["items"])
            version = int(chunk["metadata"]["resourceVersion"])
        for item in items:  # the API server omits these in the items of a list
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return Listing(items, version)

    async def _chunks(
        self, resource: Resource, namespace: str | None, selector: str, fields: str, tries: int
    ) -> AsyncIterator[Object]:
        params = {"limit": str(CHUNK)}
        if selector:
            params["labelSelector"] = selector
        if fields:
            params["fieldSelector"] = fields
        while True:
            chunk = await self._send("GET", resource.path(namespace), params=params, tries=tries)
            yield chunk
            if not (token := chunk["metadata"].get("continue")):
                return
            params["continue"] = token

    async def _send(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        params: dict[str, str] | None = None,
        tries: int = TRIES,
    ) -> Object:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        patience = PATIENCE_SECONDS
        for attempt in range(tries):
            pause = 0.2 * 2**attempt
            last = attempt == tries - 1 or patience <= 0
            try:
                return await self._once(method, path, data, content_type, params)
            except ApiError as error:
                if last or error.is_verdict or not (error.code == 429 or error.code >= 500):
                    raise
                pause = error.retry_after or pause
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                self._observe(method, 0)
                if last:
                    raise
            await asyncio.sleep(min(pause, patience))
            patience -= pause
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, data: bytes | None, content_type: str, params: dict[str, str] | None
    ) -> Object:
        assert self._session is not None, "use `async with Api(...)`"
        headers = {"Content-Type": content_type, "Accept": "application/json", **self._connection.headers()}
        url = self._connection.server + path
        async with self._session.request(method, url, data=data, headers=headers, params=params) as response:
            self._observe(method, response.status)
            text = await response.read()
            if response.status < 400:
                return _object(text) if text else {}
            raise _error(response.status, text, response.headers.get("Retry-After"))


async def _events(lines: aiohttp.StreamReader) -> AsyncIterator[tuple[str, Object]]:
    """An incomplete event was cut off, such as by a proxy or a server that stopped."""
    try:
        async for line in lines:
            event = json.loads(line)
            yield event["type"], event["object"]
    except (ValueError, TypeError, KeyError, HttpProcessingError) as error:
        raise aiohttp.ClientPayloadError(f"the watch broke off within an event: {error}") from None


def _object(text: bytes) -> Object:
    """A 2xx response that is not an API object comes from a proxy, not from the API server."""
    try:
        found = dict(json.loads(text))
        if found.keys() & {"metadata", "resources"}:
            return found
    except (ValueError, TypeError):
        pass
    raise ApiError(502, "BadGateway", f"not a response of an API server: {text[:200]!r}")


def _error(code: int, text: bytes, retry_after: str | None) -> ApiError:
    """The error of a Status object, or the plain text if a proxy answered instead."""
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", text.decode(errors="replace")[:500]
    return ApiError(code, reason, message, float(retry_after) if retry_after and retry_after.isdigit() else None)


SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_LIFETIME_SECONDS = 60.0
"""The kubelet renews a bound token well before it expires; reading the file once a minute is enough."""


class NoClusterError(Exception):
    """No cluster is configured; the message says what was looked for."""


@dataclass
class Connection:
    """A server's address, its TLS context, and the credentials for the Authorization header."""

    server: str
    tls: ssl.SSLContext | None
    token: str | None = None
    token_file: Path | None = None
    _read_at: float = -TOKEN_LIFETIME_SECONDS

    def headers(self) -> dict[str, str]:
        """Authorization for the next request; a token file is read again when its copy is too old."""
        if self.token_file is not None and time.monotonic() - self._read_at > TOKEN_LIFETIME_SECONDS:
            self.token = self.token_file.read_text().strip()
            self._read_at = time.monotonic()
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def service_account(connection: Connection, namespace: str) -> dict[str, Any] | None:
    """The ServiceAccount of this process, as owner of objects, which are then deleted when the chart is uninstalled.

    None if the process is not a ServiceAccount of that namespace, such as a person.
    """
    token = connection.headers().get("Authorization", "").removeprefix("Bearer ")
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
        own = {"name": str(claims["serviceaccount"]["name"]), "uid": str(claims["serviceaccount"]["uid"])}
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return {"apiVersion": "v1", "kind": "ServiceAccount", **own} if claims.get("namespace") == namespace else None


def connect() -> Connection:
    """The service account in a pod, else ``KUBECONFIG`` or ``~/.kube/config``; raises :class:`NoClusterError`."""
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
    """The current context with a client certificate or a token; other authentication methods are refused."""
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
