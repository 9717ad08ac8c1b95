"""An API server in this process, for what a real one cannot be asked to do on cue: fail, stall, expire a list.

It stores objects, counts up resourceVersions, answers conflicts, and keeps a log of requests. ``fail(verb, code)``
makes the next matching requests fail. It validates nothing: what only a real API server knows is tested against a
real one.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from trainwright_operator.cluster.client import Api, Connection


@dataclass
class Fault:
    verb: str
    code: int
    times: int
    path: str = ""
    retry_after: str | None = None
    message: str = "injected"
    done: bool = False


@dataclass
class FakeApiServer:
    """``requests`` counts (verb, resource); ``objects`` maps a path to its object."""

    objects: dict[str, dict] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    version: int = 100
    page: int = 500

    def fail(self, verb, code, times=1, path="", **how):
        """Answer ``code``, or not at all for 0; with ``done`` the request is carried out, and only its answer lost."""
        self.faults.append(Fault(verb, code, times, path, **how))

    def put(self, path, obj):
        self.version += 1
        kept = copy.deepcopy(obj)
        kept["metadata"]["resourceVersion"] = str(self.version)
        before = self.objects.get(path)
        if before and "generation" in before["metadata"] and before.get("spec") != kept.get("spec"):
            kept["metadata"]["generation"] = before["metadata"]["generation"] + 1
        self.objects[path] = kept
        return kept

    @asynccontextmanager
    async def serve(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            yield Connection(f"http://127.0.0.1:{port}", None)
        finally:
            await runner.cleanup()

    async def _handle(self, request):
        path, verb = request.path, request.method
        self.requests[verb, _resource(path)] += 1
        for fault in self.faults:
            if fault.times > 0 and fault.verb in (verb, "*") and fault.path in path:
                fault.times -= 1
                if fault.done:
                    await self._answer(request)
                return await _failure(request, fault)
        return await self._answer(request)

    async def _answer(self, request):
        body = json.loads(await request.read() or "{}")
        answer = {"GET": self._get, "POST": self._post, "PATCH": self._patch, "PUT": self._put, "DELETE": self._delete}
        return answer[request.method](request.path, body, request)

    def _get(self, path, _, request):
        if path in self.objects:
            return web.json_response(self.objects[path])
        below = [obj for at, obj in sorted(self.objects.items()) if at.rpartition("/")[0] == path]
        if not below and (not path.endswith("s") or "/persistentvolumeclaims/" in path or "/secrets/" in path):
            return _status(404, "NotFound", f"{path} not found")
        start = int(request.query.get("continue", "0"))
        end = start + min(self.page, int(request.query.get("limit", str(self.page))))
        meta = {"resourceVersion": str(self.version), **({"continue": str(end)} if end < len(below) else {})}
        return web.json_response({"metadata": meta, "items": below[start:end]})

    def _post(self, path, body, _):
        name = body["metadata"].get("name", f"generated-{self.version}")
        if f"{path}/{name}" in self.objects:
            return _status(409, "AlreadyExists", f"{name} already exists")
        body["metadata"].setdefault("uid", f"uid-{self.version}")
        return web.json_response(self.put(f"{path}/{name}", body), status=201)

    def _put(self, path, body, _):
        known = self.objects.get(path)
        if known is None or known["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            return _status(409, "Conflict", "the object has been modified")
        return web.json_response(self.put(path, body))

    def _patch(self, path, body, _):
        target = path.removesuffix("/status")
        known = self.objects.get(target)
        if known is None:
            return web.json_response(self.put(target, body), status=201)
        asked = body.get("metadata", {}).pop("resourceVersion", None)
        if asked not in (None, known["metadata"]["resourceVersion"]):
            return _status(409, "Conflict", "the object has been modified")
        return web.json_response(self.put(target, merged(known, body)))

    def _delete(self, path, _, __):
        if self.objects.pop(path, None) is None:
            return _status(404, "NotFound", "not found")
        return web.json_response({"kind": "Status", "metadata": {}, "status": "Success"})


async def _failure(request, fault):
    if fault.code == 0:
        request.transport.close()
        await asyncio.sleep(0)
        return web.Response()
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else None
    return web.json_response({"reason": "Injected", "message": fault.message}, status=fault.code, headers=headers)


def _status(code, reason, message):
    return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=code)


def merged(known, patch):
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    base = known if isinstance(known, dict) else {}
    kept = {key: value for key, value in base.items() if key not in patch}
    return kept | {key: merged(base.get(key), value) for key, value in patch.items() if value is not None}


def _resource(path):
    parts = path.strip("/").split("/")
    known = ("services", "jobs", "pods", "configmaps", "trainingjobs", "acceleratorpools", "leases", "tokenreviews")
    return next((part for part in parts if part in (*known, "events", "secrets", "nodes")), parts[-1])


def play(scene):
    """Run ``scene(server, api)`` with a server of its own and a client of it."""

    async def run():
        server = FakeApiServer()
        async with server.serve() as connection, Api(connection) as api:
            await scene(server, api)

    asyncio.run(run())
