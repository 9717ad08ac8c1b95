"""Liveness, readiness and metrics over plain HTTP, served before leadership is won."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.pulse import Pulse, Word


def application(metrics: Metrics, pulse: Pulse, refresh: Callable[[], None]) -> web.Application:
    """``/healthz`` restarts a process that cannot recover; ``/readyz`` is also true of a standby that only waits.

    They are answered by the loop that does the work: while it is blocked, a probe gets no answer in time.
    ``refresh`` is called before metrics are shown, for those that are counted only then.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(pulse.alive())

    async def readyz(_: web.Request) -> web.Response:
        return _verdict(pulse.ready())

    async def show(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    return app


def _verdict(word: Word) -> web.Response:
    return web.Response(text=f"{'ok' if word.good else 'not ok'}: {word.why}\n", status=200 if word.good else 503)
