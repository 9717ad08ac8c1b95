"""Records Kubernetes Events about a TrainingJob, which ``kubectl describe`` shows.

They are not state: nothing waits for them, and they are written more slowly if the API server is busy. An Event that
cannot be written is logged and dropped.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from datetime import UTC, datetime

import aiohttp

from trainwright_operator.api.names import API_VERSION, FIELD_MANAGER, JOB_KIND
from trainwright_operator.cluster.client import Api, ApiError, Object
from trainwright_operator.cluster.resources import EVENTS
from trainwright_operator.core.events import Event

MAX_NOTE = 1024
"""Maximum bytes of an Event's note."""
MAX_WAITING = 10_000
"""How many Events may wait to be written; later ones are only logged."""
SHARE = 4
"""The next Event waits this many times the duration of a write, so writing takes at most a fifth of the time."""
LAST_SECONDS = 1.0
"""How long remaining Events are written when the operator stops."""

logger = logging.getLogger(__name__)


class Recorder:
    """Writes Events in order while :meth:`run` runs. Use within one event loop."""

    def __init__(self, api: Api, reporter: str) -> None:
        self._api, self._reporter = api, reporter
        self._waiting: asyncio.Queue[Object] = asyncio.Queue(MAX_WAITING)

    def tell(self, job: Object, event: Event, now: datetime) -> None:
        """Queue ``event`` of ``job``."""
        if not self._waiting.full():
            self._waiting.put_nowait(record(job, event, now, self._reporter))

    async def run(self) -> None:
        """Write until cancelled."""
        clock = asyncio.get_running_loop()
        while True:
            event = await self._waiting.get()
            began = clock.time()
            await self._write(event)
            await asyncio.sleep(SHARE * (clock.time() - began))

    async def flush(self) -> None:
        """Write remaining Events for a short time; never raises, because it runs at exit."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                while not self._waiting.empty():
                    await self._write(self._waiting.get_nowait())
        except TimeoutError:
            logger.warning("%d events not written: the operator stops", self._waiting.qsize())

    async def _write(self, event: Object) -> None:
        try:
            await self._api.create(EVENTS, event)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            about = event["regarding"]
            logger.warning("event of %s/%s not written: %s", about["namespace"], about["name"], error)


def record(job: Object, event: Event, now: datetime, reporter: str) -> Object:
    """The ``events.k8s.io/v1`` object of ``event``; its note is truncated to the limit of the API."""
    meta = job["metadata"]
    namespace = meta.get("namespace", "default")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name'][:40]}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": reporter[:128],
        "action": event.reason,
        "reason": event.reason,
        "type": event.type,
        "note": event.message.encode()[:MAX_NOTE].decode(errors="ignore"),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "name": meta["name"],
            "namespace": namespace,
            "uid": meta.get("uid", ""),
            "resourceVersion": meta.get("resourceVersion", ""),
        },
    }
