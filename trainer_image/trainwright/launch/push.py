"""Posts documents to the operator on a background thread: the newest wins, and training never waits.

The document is built when it is time to post, so none is built that cannot be sent. A failed push is retried with
growing pauses; the retry sends the newest document.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainwright.contract import ENV_PROGRESS_CA, ENV_PROGRESS_TOKEN, ENV_PROGRESS_URL, UserError

TIMEOUT_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Endpoint:
    """The URL to post to, the CA to trust, and the file with the bearer token (rotated by the kubelet)."""

    url: str
    ca_file: str | None = None
    token_file: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise UserError(f"progress URL {self.url!r}: must be https://HOST[:PORT]/PATH")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise UserError(f"progress URL {self.url!r}: http would send the token in the clear; use https")

    @staticmethod
    def from_environment() -> Endpoint | None:
        """The operator's endpoint of this process; None outside of a job. Raises :class:`UserError` for a bad URL."""
        url = os.environ.get(ENV_PROGRESS_URL)
        return Endpoint(url, os.environ.get(ENV_PROGRESS_CA), os.environ.get(ENV_PROGRESS_TOKEN)) if url else None

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


class PushRefused(Exception):
    """The operator answered but did not accept the document; ``retry_after`` is in seconds."""

    def __init__(self, status: int, reason: str, retry_after: float) -> None:
        super().__init__(f"{status} {reason}".strip())
        self.retry_after = retry_after


class Poster:
    """A keep-alive connection to an endpoint. Rereads the token and the CA, because they rotate."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: http.client.HTTPConnection | None = None

    def post(self, document: dict[str, Any]) -> None:
        """Raises OSError, http.client.HTTPException or :class:`PushRefused`; the next call then reconnects."""
        body = json.dumps(document, separators=(",", ":")).encode()
        kept = self._connection is not None
        try:
            self._exchange(body)
        except (http.client.RemoteDisconnected, ConnectionError):
            self.close()
            if not kept:
                raise
            self._exchange(body)  # the server had closed the idle connection, which is not a failure
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
            raise PushRefused(answer.status, answer.reason, _seconds(answer.getheader("Retry-After")))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _seconds(text: str | None) -> float:
    """The seconds of a Retry-After header; 0 for a date."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


class Publisher:
    """A daemon thread that delivers the result of ``collect``: every ``interval`` seconds, or after ``publish_soon``.

    ``collect(urgent)`` runs on the thread and returns the document, or None when nothing changed. When ``deliver``
    raises, it is retried after a pause that doubles from ``interval`` up to a minute, and ``on_failure`` gets the
    message of the first failure in a row.
    """

    def __init__(
        self,
        collect: Callable[[bool], dict[str, Any] | None],
        deliver: Callable[[dict[str, Any]], None],
        on_failure: Callable[[str], None],
        interval: float,
        minimum_gap: float = 1.0,
    ) -> None:
        self._collect, self._deliver, self._on_failure = collect, deliver, on_failure
        self._interval, self._minimum_gap = interval, minimum_gap
        self._condition = threading.Condition()
        self._urgent = self._closing = self._busy = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def publish_soon(self) -> None:
        """Delivers before the interval is over. Never blocks on the network."""
        with self._condition:
            self._urgent = True
            self._condition.notify_all()

    def close(self, deadline_seconds: float) -> None:
        """Delivers the newest document and ends the thread, both within the deadline."""
        with self._condition:
            self._urgent = self._closing = True
            self._condition.notify_all()
        self._thread.join(deadline_seconds)

    def _run(self) -> None:
        pause = 0.0
        while True:
            urgent, closing = self._wait(pause)
            pause = self._attempt(urgent)
            if closing:
                return

    def _wait(self, pause: float) -> tuple[bool, bool]:
        """Waits for the interval, or ``publish_soon`` (at least ``pause`` seconds), or ``close``."""
        now = time.monotonic()
        earliest, latest = now + pause, now + max(pause, self._interval)
        with self._condition:
            while not self._closing:
                now = time.monotonic()
                due = earliest if self._urgent else latest
                if now >= due:
                    break
                self._condition.wait(due - now)
            urgent, self._urgent = self._urgent, False
            return urgent, self._closing

    def _attempt(self, urgent: bool) -> float:
        """Delivers once; returns the seconds to wait before the next attempt."""
        try:
            document = self._collect(urgent or self._failures > 0)
            if document is not None:
                self._deliver(document)
            self._failures = 0
            return self._minimum_gap
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                with suppress(Exception):
                    self._on_failure(f"{type(error).__name__}: {error}")
            pause = min(LONGEST_PAUSE_SECONDS, max(self._interval, 0.1) * 2 ** min(self._failures - 1, 10))
            return float(max(pause, getattr(error, "retry_after", 0.0)))
