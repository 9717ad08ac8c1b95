"""A kubelet that does one thing: it tells the logs of pods, so that the API server's log requests have an answer.

Simulated nodes have no kubelet. A node made here says that its kubelet listens on loopback, where this one does.
"""

from __future__ import annotations

import ssl
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from cluster.pki import Authority
from cluster.simulated import simulated_node

LABEL = "simulated.trainwright.dev/tells-logs"


class Logs:
    """Lines of each pod, with the time of each; ``end`` ends the log for those who follow it.

    A pod goes by its name without the random end that the Job controller gives it.
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = defaultdict(list)
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def write(self, pod: str, text: str, time: str | None = None) -> None:
        stamp = time or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        with self._changed:
            self._lines[pod].append(f"{stamp} {text}")
            self._changed.notify_all()

    def end(self, *pods: str) -> None:
        with self._changed:
            self._ended |= set(pods)
            self._changed.notify_all()

    def read(self, pod: str, follow: bool, tail: int | None) -> Iterator[str]:
        lines = self._lines[pod]
        at = max(0, len(lines) - tail) if tail is not None else 0
        while True:
            with self._changed:
                if follow and pod not in self._ended:
                    self._changed.wait_for(lambda at=at: len(lines) > at or pod in self._ended, 20)
                new, over = lines[at:], not follow or pod in self._ended
            yield from new
            at += len(new)
            if over and at == len(lines):
                return


@contextmanager
def kubelet(folder: Path) -> Iterator[tuple[Logs, int]]:
    """The logs to write, and the port on loopback on which they are told."""
    logs = Logs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            url = urlparse(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            pod = url.path.split("/")[3].rpartition("-")[0]
            tail = int(query["tailLines"]) if "tailLines" in query else None
            for line in logs.read(pod, query.get("follow") == "true", tail):
                self.wfile.write(f"{line}\n".encode())
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Silent."""

    authority = Authority.create(folder)
    authority.issue_server("kubelet")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "kubelet.crt", folder / "kubelet.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield logs, server.server_port
    finally:
        server.shutdown()
        server.server_close()


def node(name: str, port: int) -> dict:
    made = simulated_node(name, labels={LABEL: name}, taint=LABEL)
    made["status"] |= {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    return made
