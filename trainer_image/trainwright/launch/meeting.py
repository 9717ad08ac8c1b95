"""Logs whether the nodes of a gang have met; node 0 also reports it to the operator.

The operator only sees ready pods. So node 0 reports once that all nodes have met. An operator that gets no report knows
that the nodes have not met, or that their reports do not get through.

Nodes that have met may still be unable to reach each other on other ports. Collectives choose their ports, and wait for
a long time when one is blocked. So each node connects once to the next one, on a random port. A failure is logged, and
node 0 reports it to the operator. It does not end the job, because collectives may use another route.
"""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from trainwright.contract import (
    ENV_PROGRESS_CA,
    ENV_PROGRESS_TOKEN,
    ENV_PROGRESS_URL,
    RoundEnd,
    UserError,
    gang_on_wire,
    rounds_on_wire,
)
from trainwright.launch.push import Endpoint, Poster, PushRefused
from trainwright.launch.rendezvous import Place, Wait

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


class GangReporter:
    """Reports the state of the gang, on a thread that lives only until the newest report is delivered."""

    def __init__(self, place: Place, environment: Mapping[str, str]) -> None:
        self._endpoint = _endpoint(environment) if place.node_rank == 0 else None
        self._alone = place.nodes == 1
        self._lock = threading.Lock()
        self._pending: dict[str, Any] | None = None
        self._busy = False

    def waiting(self, message: str) -> None:
        self.log(message)
        self.report(message)

    def log(self, message: str) -> None:
        print(f"trainwright: {message}", file=sys.stderr, flush=True)

    def report(self, message: str) -> None:
        """To the operator only; replaces the message reported before."""
        self._push(gang_on_wire(message))

    def met(self, wait: Wait) -> None:
        if wait.reported:
            self.log(f"all nodes have met, after {wait.seconds():.0f} s")
        if not self._alone:
            self._push(gang_on_wire())

    def rounds(self, number: int, ended: Sequence[RoundEnd]) -> None:
        """The round that starts now, and why those before it ended."""
        self._push(rounds_on_wire(number, ended))

    def _push(self, document: dict[str, Any]) -> None:
        if self._endpoint is None:
            return
        with self._lock:
            undelivered = (self._pending or {}).get("trainwright", {})
            self._pending = {**document, "trainwright": {**undelivered, **document["trainwright"]}}
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._deliver, args=(Poster(self._endpoint),), name="gang report", daemon=True).start()

    def _deliver(self, poster: Poster) -> None:
        pause = FIRST_PAUSE_SECONDS
        while (document := self._next()) is not None:
            try:
                poster.post(document)
                self._done(document)
                pause = FIRST_PAUSE_SECONDS
            except (OSError, http.client.HTTPException, PushRefused) as error:
                time.sleep(max(pause, getattr(error, "retry_after", 0.0)))
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        poster.close()

    def _next(self) -> dict[str, Any] | None:
        with self._lock:
            self._busy = self._pending is not None
            return self._pending

    def _done(self, document: dict[str, Any]) -> None:
        with self._lock:
            if self._pending is document:
                self._pending = None


def _endpoint(environment: Mapping[str, str]) -> Endpoint | None:
    url = environment.get(ENV_PROGRESS_URL)
    try:
        return Endpoint(url, environment.get(ENV_PROGRESS_CA), environment.get(ENV_PROGRESS_TOKEN)) if url else None
    except UserError:  # rank 0 raises this error itself when it first reports progress
        return None


CONNECT_SECONDS = 5.0
OPEN_SECONDS = 60.0
"""How long the port stays open: the previous node may start its check late."""
_UNREACHABLE_KEY = "apart"


class ReachabilityCheck:
    """Call ``open_port`` before the nodes have met, ``check_next`` afterwards."""

    def __init__(self, place: Place, reporter: GangReporter) -> None:
        self._place, self._reporter = place, reporter
        self._listener: socket.socket | None = None

    def open_port(self, store: Any) -> None:
        """Opens a port at the address from which this node reaches node 0, and publishes it in the store."""
        with suppress(OSError):
            with socket.create_connection((self._place.master, self._place.port), timeout=CONNECT_SECONDS) as there:
                family, own = there.family, there.getsockname()[0]
            self._listener = socket.create_server((own, 0), family=family)
            store.set(f"at/{self._place.node_rank}", f"{own} {self._listener.getsockname()[1]}")

    def check_next(self, store: Any) -> None:
        threading.Thread(target=self._check_next, args=(store.clone(),), name="reachability", daemon=True).start()

    def _check_next(self, store: Any) -> None:
        with suppress(RuntimeError):  # the store is closed: the gang is ending
            self._connect_to_next(store)
            if self._place.node_rank == 0:
                store.wait([_UNREACHABLE_KEY], timedelta(seconds=3 * CONNECT_SECONDS))
                self._reporter.report(store.get(_UNREACHABLE_KEY).decode())
        if self._listener is not None:
            threading.Event().wait(OPEN_SECONDS)
            self._listener.close()

    def _connect_to_next(self, store: Any) -> None:
        node, key = self._place.node_rank, f"at/{(self._place.node_rank + 1) % self._place.nodes}"
        if not store.check([key]):
            return
        address, port = store.get(key).decode().split()
        try:
            socket.create_connection((address, int(port)), timeout=CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            return  # the port has been closed again: this check came too late
        except OSError as error:
            message = (
                f"node {node} has met node {key[3:]} but does not reach it at {address}:{port} "
                f"({error.strerror or error}); check that a NetworkPolicy lets the job's pods reach one another on "
                "every port, not only on that of node 0"
            )
            self._reporter.log(message)
            store.set(_UNREACHABLE_KEY, message)
