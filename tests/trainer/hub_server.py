"""The part of the Hub's HTTP API that uploads use, on loopback and in memory: repositories, LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_BYTES = 1000
"""Larger files go by LFS."""

Fault = Callable[[str, str, int], int | None]
"""``fault(method, path, nth request to this path)`` -> an HTTP status to answer, 0 to cut the connection, or None."""


@dataclass
class Commit:
    revision: str
    message: str
    files: dict[str, bytes]


@dataclass
class FakeHub:
    """What the server holds. Set ``fault`` to make requests fail."""

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    fault: Fault | None = None

    def tree(self) -> dict[str, bytes]:
        return {name: data for commit in self.commits for name, data in commit.files.items()}


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub, lock = FakeHub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def handle_any(self) -> None:
            path = self.path.partition("?")[0]
            with lock:
                hub.requests.append((self.command, path))
                hub.tokens.add(self.headers.get("Authorization"))
                nth = hub.requests.count((self.command, path))
                status = hub.fault(self.command, path, nth) if hub.fault else None
            if status == 0:
                self.connection.shutdown(2)
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunked()
            if status is not None:
                self.answer(status, {"error": f"status {status}"})
                return
            with lock:
                self.answer(*respond(hub, self.command, path, body))

        def chunked(self) -> bytes:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def respond(hub: FakeHub, method: str, path: str, body: bytes) -> tuple[int, Any]:
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in hub.repositories
        hub.repositories.setdefault(name, asked)
        return (409 if known else 200), {"url": f"{hub.url}/{name}", "id": name, "name": name}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if match := re.fullmatch(r"/api/models/(.+?)/preupload/(.+)", path):
        files = json.loads(body)["files"]
        modes = [{"path": f["path"], "size": f["size"]} for f in files]
        return 200, {
            "files": [
                {"path": m["path"], "uploadMode": "lfs" if m["size"] > LFS_BYTES else "regular", "shouldIgnore": False}
                for m in modes
            ]
        }
    if path.endswith("/info/lfs/objects/batch"):
        objects = json.loads(body)["objects"]
        for each in objects:
            if each["oid"] not in hub.objects:
                each["actions"] = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}
        return 200, {"transfer": "basic", "objects": objects}
    if method == "PUT" and path.startswith("/lfs/"):
        assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
        hub.objects[path.rpartition("/")[2]] = body
        return 200, {}
    if match := re.fullmatch(r"/api/models/(.+?)/commit/(.+)", path):
        hub.commits.append(_commit(hub, match[2], body))
        oid = f"{len(hub.commits):040x}"
        return 200, {"success": True, "commitUrl": f"{hub.url}/{match[1]}/commit/{oid}", "commitOid": oid}
    if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
        return 200, {"id": match[1], "sha": f"{len(hub.commits):040x}", "siblings": []}
    return 404, {"error": path}


def _commit(hub: FakeHub, revision: str, body: bytes) -> Commit:
    message, files = "", {}
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            message = value["summary"]
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.objects[value["oid"]]
    return Commit(revision, message, files)
