"""Liveness, readiness and metrics over plain HTTP, served before leadership is won."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from trainwright_operator.cluster.metrics import Metrics


def application(
    metrics: Metrics, alive: Callable[[], bool], ready: Callable[[], bool], refresh: Callable[[], None]
) -> web.Application:
    """``/healthz`` restarts a process that cannot recover; ``/readyz`` is also true of a standby that only waits.

    ``refresh`` is called before metrics are shown, for those that are counted only then.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _verdict(ready())

    async def show(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    return app


def _verdict(good: bool) -> web.Response:
    return web.Response(text="ok\n" if good else "not ok\n", status=200 if good else 503)
