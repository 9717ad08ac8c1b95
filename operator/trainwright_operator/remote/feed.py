"""Follows a collection: yields all objects again after every change, and reconnects if needed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainwright_operator.remote.cluster import CHECK_PROXY, Cluster, Expired, Object, RemoteError, Unreachable

Key = tuple[str, str]
"""Namespace and name."""
WATCH_SECONDS = 300
RETRY_SECONDS = 2.0
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
"""What parsing raises for text that is incomplete or not from an API server."""


def key_of(obj: Mapping[str, Any]) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def snapshots(
    cluster: Cluster, path: str, interrupted: Callable[[str], None], **query: str
) -> Iterator[dict[Key, Object]]:
    """All objects at ``path`` by key: first the current state, then again after each change, forever.

    The first list must succeed. If the connection is lost later, ``interrupted`` is called once, and connecting is
    retried until it succeeds: training takes days, and a laptop sleeps.
    """
    known, version = _list(cluster, path, query)
    yield dict(known)
    reported = False
    while True:
        try:
            for reached in _changes(cluster, path, query, version, known):
                version, reported = reached, False
                yield dict(known)
        except Expired:
            known, version = _list_again(cluster, path, query, interrupted)
            yield dict(known)
        except Unreachable as error:
            if not reported:
                interrupted(f"{error}; retrying")
            reported = True
            time.sleep(RETRY_SECONDS)


def _list(cluster: Cluster, path: str, query: Mapping[str, str]) -> tuple[dict[Key, Object], str]:
    listing = cluster.get(path, **query)
    try:
        return {key_of(obj): obj for obj in listing["items"]}, listing["metadata"]["resourceVersion"]
    except UNREADABLE:
        raise Unreachable(f"the response is not a list of objects; {CHECK_PROXY}") from None


def _list_again(
    cluster: Cluster, path: str, query: Mapping[str, str], interrupted: Callable[[str], None]
) -> tuple[dict[Key, Object], str]:
    reported = False
    while True:
        try:
            return _list(cluster, path, query)
        except Unreachable as error:
            if not reported:
                interrupted(f"{error}; retrying")
            reported = True
            time.sleep(RETRY_SECONDS)


def _changes(
    cluster: Cluster, path: str, query: Mapping[str, str], version: str, known: dict[Key, Object]
) -> Iterator[str]:
    """Apply each change to ``known`` and yield its version, until the server ends the watch."""
    asked = {**query, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
    for line in cluster.lines(path, timeoutSeconds=str(WATCH_SECONDS), **asked):
        try:
            reached = _take(json.loads(line), known)
        except UNREADABLE:
            raise Unreachable(f"a line of the watch is incomplete or not an event; {CHECK_PROXY}") from None
        yield reached


def _take(event: Object, known: dict[Key, Object]) -> str:
    """Apply one event; returns its version."""
    kind, obj = event["type"], event["object"]
    if kind == "ERROR":
        raise _error(obj)
    reached = str(obj["metadata"]["resourceVersion"])
    if kind == "DELETED":
        known.pop(key_of(obj), None)
    elif kind != "BOOKMARK":
        known[key_of(obj)] = obj
    return reached


def _error(status: Object) -> RemoteError:
    return Expired("too old") if status.get("code") == 410 else Unreachable(str(status.get("message", "watch failed")))
