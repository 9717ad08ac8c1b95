"""The API server as the reconciler uses it: list in chunks, apply, patch a status, delete; every answer an object.

Thin on purpose: one session, one retry rule. What the API server asks to wait for (429, Retry-After) and what fails in
transport or with 5xx is tried again a few times here; everything else is the caller's to decide, by :class:`ApiError`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from trainwright_operator.api.names import FIELD_MANAGER
from trainwright_operator.cluster.cache import slim
from trainwright_operator.cluster.connection import Connection

TRIES = 4
PATIENCE_SECONDS = 10.0
"""How long one request waits between its tries, all in all, whatever the server asks for: a worker waits with it."""
CHUNK = 500
LONGEST_LINE = 2**22
"""Bytes of an object in a watch; etcd takes 1.5 MiB."""
TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """One resource's place in the API: ``apiVersion``, kind, plural, and whether it lives in a namespace."""

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
    """An answer of the API server that is not a success: its HTTP code, reason and message."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after

    @property
    def is_verdict(self) -> bool:
        """Asking again at once would be answered alike: only a person, or time, changes what stands in the way."""
        return (
            self.code in (400, 403, 422)
            or self.is_unserved
            or (self.code == 500 and "failed calling webhook" in self.message)
        )

    @property
    def is_unserved(self) -> bool:
        """There is no such path: the cluster does not serve this version of the kind, or not the kind at all."""
        return self.code == 404 and any(words in self.message for words in _UNSERVED)

    @property
    def is_of_lost_namespace(self) -> bool:
        """The namespace is gone, or is being deleted with all that it holds."""
        gone = self.code == 404 and self.message.startswith('namespaces "')
        return gone or (self.code == 403 and "because it is being terminated" in self.message)


@dataclass(frozen=True)
class Listing:
    """A whole list and the resourceVersion it is true at."""

    items: list[Object]
    version: int


class Api:
    """Use as an async context manager. ``observe(verb, code)`` is called once for every answer, for metrics."""

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

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        selector: str = "",
        fields: str = "",
        tries: int = TRIES,
    ) -> Listing:
        """All that the label and field selectors take; a list that expires on the way (410) is begun again once."""
        for last in (False, True):
            try:
                return await self._whole(resource, namespace, selector, fields, tries)
            except ApiError as error:
                if error.code != 410 or last:
                    raise
        raise AssertionError("unreachable")

    async def kinds(self, version: str) -> set[str]:
        """The kinds of ``group/version``; none when it is not served."""
        try:
            return {one["kind"] for one in (await self._send("GET", f"/apis/{version}"))["resources"]}
        except ApiError as error:
            if error.code != 404:
                raise
            return set()

    async def watch(
        self, resource: Resource, namespace: str | None, selector: str, version: int, seconds: int
    ) -> AsyncIterator[tuple[str, Object]]:
        """Each change after ``version`` as its type and the object, for so many seconds."""
        params = {"watch": "1", "resourceVersion": str(version), "timeoutSeconds": str(seconds)}
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
        """Put ``obj`` in the place of the one it was read from; 409 when that has changed meanwhile."""
        meta = obj["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"])
        return await self._send("PUT", path, obj, params={"fieldManager": FIELD_MANAGER})

    async def apply(self, resource: Resource, obj: Object) -> Object:
        """Server-side apply under our one field manager; what we own wins over other managers."""
        meta = obj["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"])
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._send("PATCH", path, obj, content_type=APPLY, params=params)

    async def patch_status(self, resource: Resource, namespace: str | None, name: str, patch: Object) -> Object:
        """A merge patch of the status subresource; give ``metadata.resourceVersion`` to write only what was read."""
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
        """Only the object of that ``uid``, when one is given; gone already is fine."""
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
        """Each chunk is made small as it comes, so that the list is never held at its full size."""
        items: list[Object] = []
        version = 0
        async for chunk in self._chunks(resource, namespace, selector, fields, tries):
            if not {"items", "metadata"} <= chunk.keys():
                raise ApiError(502, "BadGateway", f"not a list of {resource.plural}: {chunk!r:.200}")
            items += map(slim, chunk["items"])
            version = int(chunk["metadata"]["resourceVersion"])
        for item in items:  # the API server leaves these out of the items of a list
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
    """What is no whole event was cut off on its way, as by a proxy or a server that went down."""
    try:
        async for line in lines:
            event = json.loads(line)
            yield event["type"], event["object"]
    except (ValueError, TypeError, KeyError, HttpProcessingError) as error:
        raise aiohttp.ClientPayloadError(f"the watch broke off within an event: {error}") from None


def _object(text: bytes) -> Object:
    """A success that is no object of the API is the word of somebody between the API server and here."""
    try:
        found = dict(json.loads(text))
        if found.keys() & {"metadata", "resources"}:
            return found
    except (ValueError, TypeError):
        pass
    raise ApiError(502, "BadGateway", f"not an answer of an API server: {text[:200]!r}")


def _error(code: int, text: bytes, retry_after: str | None) -> ApiError:
    """What the server's Status object says, or its bare text when a proxy answered instead."""
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", text.decode(errors="replace")[:500]
    return ApiError(code, reason, message, float(retry_after) if retry_after and retry_after.isdigit() else None)
