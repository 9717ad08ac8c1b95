"""A proxy before the API server that knows each write of the operator, and kills it at the one that a test names.

It stands outside of the product: an operator is told nothing but another address in its kubeconfig. ``BEFORE`` kills it
when the API server has seen nothing of the write, ``AFTER`` when the write was done and its answer is never heard.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cluster.kube import Kube
from trainwright_operator.cluster.client import from_kubeconfig

SESSION = web.AppKey("session", aiohttp.ClientSession)
BEFORE, AFTER = "before", "after"
DROPPED = {"host", "content-length", "transfer-encoding", "content-encoding", "connection", "accept-encoding"}

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: proxied
clusters: [{{name: proxied, cluster: {{server: "{server}"}}}}]
users: [{{name: proxied, user: {{}}}}]
contexts: [{{name: proxied, context: {{cluster: proxied, user: proxied}}}}]
"""

Object = dict[str, Any]
Which = Callable[[str, str, Object], bool]
"""Whether this is the write: by its method, its path and its body."""


class Proxy:
    """``kill_at`` names the next write to die at; ``struck`` is set when it came."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._armed: tuple[Which, str, Callable[[], None]] | None = None
        self.struck = threading.Event()

    def kill_at(self, which: Which, when: str, kill: Callable[[], None]) -> None:
        self.struck.clear()
        self._armed = (which, when, kill)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        when, kill = self._due(request, body)
        if when == BEFORE:
            return self._strike(kill)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        url = f"{self._upstream}{request.raw_path}"
        async with request.app[SESSION].request(request.method, url, data=body or None, headers=headers) as answer:
            if when == AFTER:
                await answer.read()
                return self._strike(kill)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}
            told = web.StreamResponse(status=answer.status, headers=kept)
            await told.prepare(request)
            async for chunk in answer.content.iter_any():
                await told.write(chunk)
            await told.write_eof()
            return told

    def _due(self, request: web.Request, body: bytes) -> tuple[str | None, Callable[[], None]]:
        if self._armed is None or request.method == "GET":
            return None, _nothing
        which, when, kill = self._armed
        if not which(request.method, request.path, json.loads(body or b"{}")):
            return None, _nothing
        self._armed = None
        return when, kill

    def _strike(self, kill: Callable[[], None]) -> web.Response:
        kill()
        self.struck.set()
        return web.Response(status=500)


def _nothing() -> None:
    """Nobody is killed."""


@contextmanager
def proxied(kube: Kube, folder: Path) -> Iterator[tuple[Proxy, Kube]]:
    """The proxy, and a client (whose kubeconfig an operator may take) that goes through it."""
    connection = from_kubeconfig(kube.kubeconfig)
    assert connection.tls is not None
    proxy = Proxy(connection.server)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(_start(proxy, connection.tls), loop).result(30)
    path = folder / "proxied"
    path.write_text(KUBECONFIG.format(server=f"http://127.0.0.1:{port}"))
    try:
        yield proxy, Kube(path)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


async def _start(proxy: Proxy, tls: ssl.SSLContext) -> tuple[web.AppRunner, int]:
    app = web.Application(client_max_size=2**24)
    connector = aiohttp.TCPConnector(ssl=tls, limit=0)
    app[SESSION] = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def close(_: web.Application) -> None:
        await app[SESSION].close()

    app.on_cleanup.append(close)
    app.router.add_route("*", "/{path:.*}", proxy.serve)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, site._server.sockets[0].getsockname()[1]
