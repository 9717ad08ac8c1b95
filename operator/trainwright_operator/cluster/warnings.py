"""The Warnings of a namespace, read once for all that wait in it: for each object alone the server would read them all.

No index helps an API server to find the Events of one object: every list walks through all Events of its namespace. So
a list is shared, and the next one waits in proportion to what the last one took.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trainwright_operator.cluster.api import Api, Object
from trainwright_operator.cluster.resources import CORE_EVENTS

FRESH_SECONDS = 0.9
"""Less than the time after which what waits is looked at again, so that each look sees something new."""
SHARE = 20
"""How much longer than it took a list is taken for fresh: listing is a twentieth of the time at most."""


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

    async def about(self, namespace: str, kind: str, name: str) -> list[Object]:
        """The Events (core/v1) of type Warning about one object."""
        known = self._namespaces.setdefault(namespace, _Namespace())
        async with known.reading:
            if asyncio.get_running_loop().time() >= known.stale:
                await self._read(namespace, known)
        return known.about.get((kind, name), [])

    async def _read(self, namespace: str, known: _Namespace) -> None:
        clock = asyncio.get_running_loop()
        began = clock.time()
        listing = await self._api.list(CORE_EVENTS, namespace, fields="type=Warning")
        known.about = {}
        for event in listing.items:
            involved = event.get("involvedObject") or {}
            known.about.setdefault((involved.get("kind", ""), involved.get("name", "")), []).append(event)
        fresh = max(FRESH_SECONDS, SHARE * (clock.time() - began))
        known.stale = clock.time() + fresh
        clock.call_later(fresh, self._forget, namespace, known)

    def _forget(self, namespace: str, known: _Namespace) -> None:
        """Nothing is kept that nobody would be shown."""
        if self._namespaces.get(namespace) is known and not known.reading.locked():
            del self._namespaces[namespace]
