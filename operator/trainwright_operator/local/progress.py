"""The progress endpoint on loopback, for the runner; in a cluster the operator serves it."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_PROGRESS_TOKEN, ENV_PROGRESS_URL

MAX_PUSH_BYTES = 64 * 1024

Accept = Callable[[dict[str, Any]], None]


class ProgressServer:
    """Serves until :meth:`close`; ``accept`` is called from the server's threads."""

    def __init__(self, accept: Accept, folder: Path) -> None:
        token = secrets.token_urlsafe(24)
        self._token_file = folder / "progress-token"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(token)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(accept, token))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="progress", daemon=True).start()

    def variables(self, attempt: int) -> dict[str, str]:
        """The variables of a pod; the URL has the attempt, for trainers that do not report it."""
        url = f"http://127.0.0.1:{self._server.server_port}/attempts/{attempt}/progress"
        return {ENV_PROGRESS_URL: url, ENV_PROGRESS_TOKEN: str(self._token_file)}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(accept: Accept, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self) -> None:
            code, body = self._read()
            if body is not None:
                accept(body)
            self.send_response(code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def _read(self) -> tuple[int, dict[str, Any] | None]:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_PUSH_BYTES:
                self.close_connection = True
                return 413, None
            data = self.rfile.read(int(length))
            presented = self.headers.get("Authorization", "").encode()
            if not secrets.compare_digest(presented, f"Bearer {token}".encode()):
                return 401, None
            try:
                body = json.loads(data)
                return 200, {**body, "attempt": int(self.path.split("/")[2])}
            except (ValueError, TypeError, IndexError):
                return 400, None

        def log_message(self, format: str, *args: object) -> None:
            """No log: every push would be a line."""

    return Handler
