"""Reads the Warning events of a namespace once for all objects that wait in it.

An API server has no index for the Events of one object: every list scans all Events of the namespace. So a list is
shared, and the interval to the next one is proportional to the duration of the last one. Events are optional: if they
cannot be read, the status does without them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import aiohttp

from trainwright_operator.cluster.client import Api, ApiError, Object
from trainwright_operator.cluster.resources import CORE_EVENTS

FRESH_SECONDS = 0.9
"""Shorter than the interval of reconciles of waiting jobs, so that each of them sees new Events."""
SHARE = 20
"""A list counts as fresh for this many times its duration, so listing takes at most a twentieth of the time."""
PATIENCE_SECONDS = 10.0
"""Timeout of one list, because workers wait for it."""
FAILED_SECONDS = 5.0
"""The minimum time after a failed list until the next one."""

logger = logging.getLogger(__name__)


@dataclass
class _Namespace:
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    about: dict[tuple[str, str], list[Object]] = field(default_factory=dict)
    stale: float = 0.0


class Warnings:
    """Use within one event loop."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._namespaces: dict[str, _Namespace] = {}
        self._failing: set[str] = set()

    async def about(self, kind: str, obj: Object) -> list[Object]:
        """The Events (core/v1) of type Warning about one object; empty if they cannot be read."""
        meta = obj["metadata"]
        known = self._namespaces.setdefault(meta["namespace"], _Namespace())
        async with known.reading:
            if asyncio.get_running_loop().time() >= known.stale:
                await self._read(meta["namespace"], known)
        about = known.about.get((kind, meta["name"]), [])
        return [event for event in about if event["involvedObject"].get("uid") in (None, "", meta.get("uid"))]

    async def _read(self, namespace: str, known: _Namespace) -> None:
        clock = asyncio.get_running_loop()
        began = clock.time()
        events = await self._list(namespace)
        known.about = {}
        for event in events or ():
            involved = event.get("involvedObject") or {}
            known.about.setdefault((involved.get("kind", ""), involved.get("name", "")), []).append(event)
        fresh = max(FAILED_SECONDS if events is None else FRESH_SECONDS, SHARE * (clock.time() - began))
        known.stale = clock.time() + fresh
        clock.call_later(fresh, self._forget, namespace, known)

    async def _list(self, namespace: str) -> list[Object] | None:
        """None if it failed, which is logged once until it succeeds again."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                listing = await self._api.list(CORE_EVENTS, namespace, fields="type=Warning", tries=1)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if namespace not in self._failing:
                message = "Events of namespace %s not read; the status of waiting pods is less precise: %s"
                logger.warning(message, namespace, str(error) or "no answer in time")
            self._failing.add(namespace)
            return None
        if namespace in self._failing:
            self._failing.remove(namespace)
            logger.info("Events of namespace %s are read again", namespace)
        return listing.items

    def _forget(self, namespace: str, known: _Namespace) -> None:
        """Drop lists that are no longer used."""
        if self._namespaces.get(namespace) is known and not known.reading.locked():
            del self._namespaces[namespace]
