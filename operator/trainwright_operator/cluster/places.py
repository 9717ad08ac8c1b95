"""The places of waiting jobs in their queue, from Kueue's visibility API.

A place changes whenever a job before it starts, and each change that is shown is a write. So only the first places of a
ClusterQueue are kept, looked up at intervals: one request for each LocalQueue in which jobs wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from trainwright_operator.cluster.cache import ObjectKey
from trainwright_operator.cluster.client import Api, ApiError, Object
from trainwright_operator.cluster.informer import owner_of
from trainwright_operator.core.queues.workload import FIRST_PLACES, Workload, places_of, places_path

LOOK_SECONDS = 10.0
"""How old a place may be."""
UNSERVED_SECONDS = 600.0
"""When to ask again where the API is not served, or may not be read."""

logger = logging.getLogger(__name__)


class Places:
    """``of`` is the place of a Workload, ``look`` asks for all of them again."""

    def __init__(self, api: Api, workloads: Iterable[Object]) -> None:
        self._api, self._workloads = api, workloads
        self._known: dict[ObjectKey, int] = {}
        self.interval = LOOK_SECONDS

    def of(self, namespace: str, workload: str) -> int | None:
        """Its place in its ClusterQueue, counted from 1; None if it is not among the first, or not known."""
        return self._known.get((namespace, workload))

    async def look(self) -> list[ObjectKey]:
        """Look all places up; returns the TrainingJobs whose place has changed."""
        waiting = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one for one in self._workloads if _waits(one)
        }
        try:
            found = await self._found({(key[0], Workload(one).queue) for key, one in waiting.items()})
            self.interval = LOOK_SECONDS
        except ApiError as error:
            if self.interval != UNSERVED_SECONDS:
                logger.info("places in the queue are not known: %s", error)
            found, self.interval = {}, UNSERVED_SECONDS if error.code in (403, 404) else LOOK_SECONDS
        before, self._known = self._known, {key: place for key, place in found.items() if key in waiting}
        changed = [one for key, one in waiting.items() if before.get(key) != self._known.get(key)]
        return [key for one in changed if (key := owner_of(one))]

    async def _found(self, queues: Iterable[ObjectKey]) -> Mapping[ObjectKey, int]:
        places: dict[ObjectKey, int] = {}
        for namespace, queue in sorted(queues):
            try:
                answer: dict[str, Any] = await self._api.read(places_path(namespace, queue), limit=str(FIRST_PLACES))
            except ApiError as error:
                if error.code != 404 or error.is_unserved:
                    raise
                continue  # no such LocalQueue
            ranked = places_of(answer.get("items") or ())
            places |= {(namespace, name): one for name, (_, one) in ranked.items() if one <= FIRST_PLACES}
        return places


def _waits(stored: Object) -> bool:
    workload = Workload(stored)
    return workload.active and not (workload.reserved or workload.finished or workload.deleting)
