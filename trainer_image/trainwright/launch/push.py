"""Posts documents to the operator from a thread of its own: the newest wins, and training never waits.

What is posted is asked for when it is time to post, so a document nobody could send is never built. A push that fails
is retried with a growing pause; the next success carries the newest document anyhow.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainwright.contract import UserError

TIMEOUT_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Endpoint:
    """Where to post, whom to trust there, and the file with the bearer token (rotated by the kubelet)."""

    url: str
    ca_file: str | None = None
    token_file: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise UserError(f"progress URL {self.url!r}: must be https://HOST[:PORT]/PATH")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise UserError(f"progress URL {self.url!r}: http would send the token in the clear; use https")

    def connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
        context = ssl.create_default_context(cafile=self.ca_file)
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS, context=context)

    def path(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.token_file:
            headers["Authorization"] = f"Bearer {Path(self.token_file).read_text().strip()}"
        return headers


class Refused(Exception):
    """The operator answered, but did not take the document; ``retry_after`` is in seconds."""

    def __init__(self, status: int, reason: str, retry_after: float) -> None:
        super().__init__(f"{status} {reason}".strip())
        self.retry_after = retry_after


class Poster:
    """One kept connection to an endpoint. Reads token and CA anew as they rotate."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: http.client.HTTPConnection | None = None

    def post(self, document: dict[str, Any]) -> None:
        """Raises OSError, http.client.HTTPException or :class:`Refused`; the next call then connects anew."""
        body = json.dumps(document, separators=(",", ":")).encode()
        kept = self._connection is not None
        try:
            self._exchange(body)
        except (http.client.RemoteDisconnected, ConnectionError):
            self.close()
            if not kept:
                raise
            self._exchange(body)  # the server had closed the idle connection, which is no failure
        except BaseException:
            self.close()
            raise

    def _exchange(self, body: bytes) -> None:
        if self._connection is None:
            self._connection = self._endpoint.connect()
        self._connection.request("POST", self._endpoint.path(), body, self._endpoint.headers())
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise Refused(answer.status, answer.reason, _seconds(answer.getheader("Retry-After")))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _seconds(text: str | None) -> float:
    """Of a Retry-After header; dates are not worth their parsing here."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


class Courier:
    """A daemon thread that delivers what ``collect`` gives: at once when ``urge`` is called, else every ``interval``.

    ``collect(urged)`` runs on the thread and returns the document, or None when nothing changed. ``deliver`` may raise:
    it is then called again after a pause that doubles from ``interval`` up to a minute.
    """

    def __init__(
        self,
        collect: Callable[[bool], dict[str, Any] | None],
        deliver: Callable[[dict[str, Any]], None],
        complain: Callable[[str], None],
        interval: float,
        minimum_gap: float = 1.0,
    ) -> None:
        self._collect, self._deliver, self._complain = collect, deliver, complain
        self._interval, self._minimum_gap = interval, minimum_gap
        self._condition = threading.Condition()
        self._urged = self._closing = self._busy = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def urge(self) -> None:
        """Something happened that should not wait for the interval. Never blocks on the network."""
        with self._condition:
            self._urged = True
            self._condition.notify_all()

    def close(self, deadline_seconds: float) -> None:
        """Delivers the newest document once more and ends the thread, both within the deadline."""
        with self._condition:
            self._urged = self._closing = True
            self._condition.notify_all()
        self._thread.join(deadline_seconds)

    def _run(self) -> None:
        pause = 0.0
        while True:
            urged, closing = self._wait(pause)
            pause = self._attempt(urged)
            if closing:
                return

    def _wait(self, pause: float) -> tuple[bool, bool]:
        """Until it is time, or urged after at least ``pause`` seconds, or closing."""
        now = time.monotonic()
        earliest, latest = now + pause, now + max(pause, self._interval)
        with self._condition:
            while not self._closing:
                now = time.monotonic()
                due = earliest if self._urged else latest
                if now >= due:
                    break
                self._condition.wait(due - now)
            urged, self._urged = self._urged, False
            return urged, self._closing

    def _attempt(self, urged: bool) -> float:
        """Delivers once; returns the seconds to wait before the next attempt."""
        try:
            document = self._collect(urged or self._failures > 0)
            if document is not None:
                self._deliver(document)
            self._failures = 0
            return self._minimum_gap
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                with suppress(Exception):
                    self._complain(f"{type(error).__name__}: {error}")
            pause = min(LONGEST_PAUSE_SECONDS, max(self._interval, 0.1) * 2 ** min(self._failures - 1, 10))
            return float(max(pause, getattr(error, "retry_after", 0.0)))
