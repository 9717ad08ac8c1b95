"""The work of a leader: prime the cache, run workers on the queue, relist at intervals."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp

from trainwright_operator.cluster import logs
from trainwright_operator.cluster.cache import ObjectKey, version_of
from trainwright_operator.cluster.client import Api, ApiError, Object, Resource
from trainwright_operator.cluster.health import BLIND_SECONDS, STUCK_SECONDS, Watches
from trainwright_operator.cluster.informer import Stores, watched
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.places import Places
from trainwright_operator.cluster.queue import KeyedQueue
from trainwright_operator.cluster.reconciler import Reconciler
from trainwright_operator.cluster.resources import PODS, QUEUED, TRAINING_JOBS, WORKLOADS
from trainwright_operator.cluster.settings import Settings

SETTLE_SECONDS = 0.25
"""How long a change of a child waits for more: the pods of a gang are created, bound and started together."""

SETTLED_PODS = 500
"""Of a gang with more pods, which are looked at together, a change waits longer in proportion, up to 2 s."""

HEAD_START_SECONDS = 15.0
"""Under overload, a new job goes before keys of other jobs that have waited less than this."""

WATCH_SECONDS = 60
"""The length of one of our watches: also how long kopf may take until its own are established."""

FOLLOWED = frozenset({PODS, *QUEUED})
"""Watched without kopf, which keeps a task for each object: of a gang's start that was half of the processor time. It
also ends when a kind that it watches is removed from the cluster, as Kueue's may be."""

SHORTEST_DELAY, LONGEST_DELAY = 1.0, 30.0
"""Between the tries of a watch, in seconds: at first, and after it has failed several times."""

logger = logging.getLogger(__name__)

Scope = tuple[Resource, str | None]
"""The scope of one watch: a resource in one namespace, or in all (None)."""


def settle_seconds(pods: int) -> float:
    """How long a change of a child of a job with so many pods waits for more."""
    return SETTLE_SECONDS * min(8.0, max(1.0, pods / SETTLED_PODS))


def utcnow() -> datetime:
    return datetime.now(UTC)


class Controller:
    """Feeds the reconciler: ``on_event`` and ``on_progress`` queue events and pushes, ``run`` processes them."""

    def __init__(
        self,
        api: Api,
        stores: Stores,
        reconciler: Reconciler,
        settings: Settings,
        metrics: Metrics,
        places: Places | None = None,
    ) -> None:
        self.watched = watched(places is not None)
        self._places = places
        self.watched_by_kopf = {one: selector for one, selector in self.watched.items() if one not in FOLLOWED}
        self._api, self._stores, self._reconciler = api, stores, reconciler
        self._settings, self._metrics = settings, metrics
        self._queue: KeyedQueue[ObjectKey] = KeyedQueue()
        self._primed: dict[Scope, int] = {}
        self._live: dict[Scope, int] = {}
        self._watches: Watches[Scope] = Watches()
        self._worked = time.monotonic()
        metrics.queue_depth.set_function(lambda: len(self._queue))

    def on_event(self, resource: Resource, kind: str | None, obj: Object) -> None:
        """Handle an event of kopf; ``kind`` is None for objects of its initial list."""
        of_one = self._settings.namespaces and resource.namespaced
        scope = (resource, obj["metadata"].get("namespace") if of_one else None)
        self._watches.saw(scope, version_of(obj))
        if kind is not None:
            self._live.setdefault(scope, version_of(obj))
        self._take(resource, kind == "DELETED", obj)

    def _take(self, resource: Resource, deleted: bool, obj: Object) -> None:
        for key in self._stores.take(resource, obj, deleted):
            self._queue.add(key, self._delay(resource, key))

    def _delay(self, resource: Resource, key: ObjectKey) -> float:
        if resource is TRAINING_JOBS:
            return -HEAD_START_SECONDS
        if resource is WORKLOADS:  # one write admits a job, and its quota is idle until its pods run
            return 0.0
        return settle_seconds(self._stores.pods.count(key))

    def on_progress(self, key: ObjectKey, push: dict[str, Any]) -> None:
        self._queue.add(key, self._reconciler.keep_progress(key, push))

    def still(self) -> str:
        """Describes watches without events and workers that finish nothing; empty if all is well."""
        blind = sorted(
            f"{one.plural} in namespace {where}" if where else one.plural for one, where in self._watches.blind
        )
        idle = time.monotonic() - self._worked
        stuck = self._queue.overdue > STUCK_SECONDS and idle > STUCK_SECONDS
        problems = [f"the watch of {', '.join(blind)} misses changes that a list has found"] if blind else []
        return "; ".join([*problems, *([f"no worker has finished a reconcile for {idle:.0f} s"] if stuck else [])])

    async def prime(self) -> None:
        """List everything before the first worker starts; otherwise each job would be planned as a new one."""
        for resource in self.watched:
            self._primed |= await self._list(resource)
        for job in self._stores.training_jobs:
            self._queue.add((job["metadata"]["namespace"], job["metadata"]["name"]))
        logger.info("primed", extra={"jobs": len(self._stores.training_jobs), "pods": len(self._stores.pods)})

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._relist())
            if self._places:
                tasks.create_task(self._look_places_up(self._places))
            for scope, version in self._primed.items():
                watch = self._follow if scope[0] in FOLLOWED else self._bridge
                tasks.create_task(watch(scope, version))
            for _ in range(self._settings.workers):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            logs.about.set({"namespace": key[0], "job": key[1], **self._stores.about(key)})
            started = time.monotonic()
            try:
                again = await self._reconciler.reconcile(key)
            except ApiError as error:
                self._after_refusal(key, error)
            except (aiohttp.ClientError, TimeoutError) as error:
                logger.warning("the API server could not be reached: %s", error)
                self._queue.done(key, failed=True)
            except Exception:
                logger.exception("reconcile failed")
                self._metrics.reconcile_errors.inc()
                self._queue.done(key, failed=True)
            else:
                self._queue.done(key, after=again)
            self._worked = time.monotonic()
            self._metrics.reconcile_seconds.observe(self._worked - started)

    def _after_refusal(self, key: ObjectKey, error: ApiError) -> None:
        """A conflict only means that a newer object will arrive; everything else is an error."""
        if error.code != 409:
            logger.warning("refused by the API server: %s", error)
            self._metrics.reconcile_errors.inc()
        self._queue.done(key, failed=True)

    async def _follow(self, scope: Scope, version: int | None) -> None:
        """Watch from the first list on, without end; what no watch can tell any more is listed."""
        delay = SHORTEST_DELAY
        while True:
            try:
                if version is None:
                    version = (await self._list(scope[0]))[scope]
                async for reached in self._changes(scope, version):
                    version = reached
                    self._watches.saw(scope, version)
                    delay = SHORTEST_DELAY
                await asyncio.sleep(SHORTEST_DELAY)  # whoever ends watches at once, such as a proxy, is not hammered
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("the watch of %s failed: %s", scope[0].plural, error)
                if isinstance(error, ApiError) and error.code == 410:
                    version = None
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY)

    async def _changes(self, scope: Scope, version: int) -> AsyncIterator[int]:
        """Take each change after ``version`` until the watch ends; yields the version that was reached."""
        resource, namespace = scope
        selector = self.watched[resource]
        async for kind, obj in self._api.watch(resource, namespace, selector, version, WATCH_SECONDS):
            if kind != "BOOKMARK":
                self._take(resource, kind == "DELETED", obj)
            yield version_of(obj)

    async def _bridge(self, scope: Scope, version: int) -> None:
        """Watch from the first list until kopf does, because kopf misses deletions before its own list."""
        try:
            async for reached in self._changes(scope, version):
                if reached >= self._live.get(scope, math.inf):
                    return
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("could not watch %s from the first list: %s", scope[0].plural, error)
            await self._list_again(scope[0])

    async def _relist(self) -> None:
        """Relist; only this finds deletions that were missed in a gap of a watch."""
        while True:
            interval = self._settings.relist_interval
            await asyncio.sleep(min(interval, BLIND_SECONDS) if self._watches.doubted else interval)
            for resource in self.watched:
                await self._list_again(resource)

    async def _look_places_up(self, places: Places) -> None:
        while True:
            await asyncio.sleep(places.interval)
            try:
                changed = await places.look()
            except (aiohttp.ClientError, TimeoutError) as error:
                logger.warning("could not look up places in the queue: %s", error)
                continue
            for key in changed:
                self._queue.add(key)

    async def _list_again(self, resource: Resource) -> None:
        try:
            await self._list(resource)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("could not list %s: %s", resource.plural, error)

    async def _list(self, resource: Resource) -> dict[Scope, int]:
        """Store a full list; returns its version for each namespace."""
        namespaces = (self._settings.namespaces if resource.namespaced else ()) or (None,)
        listings = [await self._api.list(resource, namespace, self.watched[resource]) for namespace in namespaces]
        items = [item for listing in listings for item in listing.items]
        for key in self._stores.replace(resource, items, min(listing.version for listing in listings)):
            self._queue.add(key)
        scopes = [(resource, namespace) for namespace in namespaces]
        for scope, listing in zip(scopes, listings, strict=True):
            self._watches.listed(scope, max(map(version_of, listing.items), default=0))
        return {scope: listing.version for scope, listing in zip(scopes, listings, strict=True)}
