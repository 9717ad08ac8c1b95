"""Says in the log whether the nodes of a gang have met, and node 0 says it to the operator as well.

The operator sees pods that are ready and no more. So node 0 tells once that all have met; an operator that hears
nothing of it knows that they have not, or that nothing of theirs gets through.

Nodes that have met may still not reach each other on any port: collectives choose theirs, and wait long where one is
shut. So each node tries the next one once, on a port that nobody has heard of before. What fails is said in the log
and, by node 0, to the operator; nothing is ended for it, for collectives may go another way.
"""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from trainwright.contract import ENV_PROGRESS_CA, ENV_PROGRESS_TOKEN, ENV_PROGRESS_URL, UserError, gang_on_wire
from trainwright.launch.push import Endpoint, Poster, Refused
from trainwright.launch.rendezvous import Place, Wait

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


class Herald:
    """Pushes on a thread that lives only until the newest word has arrived."""

    def __init__(self, place: Place, environment: Mapping[str, str]) -> None:
        self._endpoint = _endpoint(environment) if place.nodes > 1 and place.node_rank == 0 else None
        self._lock = threading.Lock()
        self._news: dict[str, Any] | None = None
        self._busy = False

    def waits(self, words: str) -> None:
        self.say(words)
        self.tell(words)

    def say(self, words: str) -> None:
        print(f"trainwright: {words}", file=sys.stderr, flush=True)

    def tell(self, words: str) -> None:
        """To the operator alone, in the place of what it was told before."""
        self._push(gang_on_wire(words))

    def met(self, wait: Wait) -> None:
        if wait.told:
            self.say(f"all nodes have met, after {wait.seconds():.0f} s")
        self._push(gang_on_wire())

    def _push(self, news: dict[str, Any]) -> None:
        if self._endpoint is None:
            return
        with self._lock:
            self._news = news
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._deliver, args=(Poster(self._endpoint),), name="herald", daemon=True).start()

    def _deliver(self, poster: Poster) -> None:
        pause = FIRST_PAUSE_SECONDS
        while (news := self._next()) is not None:
            try:
                poster.post(news)
                self._done(news)
                pause = FIRST_PAUSE_SECONDS
            except (OSError, http.client.HTTPException, Refused) as error:
                time.sleep(max(pause, getattr(error, "retry_after", 0.0)))
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        poster.close()

    def _next(self) -> dict[str, Any] | None:
        with self._lock:
            self._busy = self._news is not None
            return self._news

    def _done(self, news: dict[str, Any]) -> None:
        with self._lock:
            if self._news is news:
                self._news = None


def _endpoint(environment: Mapping[str, str]) -> Endpoint | None:
    url = environment.get(ENV_PROGRESS_URL)
    try:
        return Endpoint(url, environment.get(ENV_PROGRESS_CA), environment.get(ENV_PROGRESS_TOKEN)) if url else None
    except UserError:  # rank 0 says so when it has something to tell
        return None


CONNECT_SECONDS = 5.0
OPEN_SECONDS = 60.0
"""How long the port is open: the node before may be slow to begin."""
_APART = "apart"


class Reach:
    """``offer`` before the nodes have met, ``try_next`` when they have."""

    def __init__(self, place: Place, herald: Herald) -> None:
        self._place, self._herald = place, herald
        self._listener: socket.socket | None = None

    def offer(self, store: Any) -> None:
        """Opens a port at the address by which this node reaches node 0, and tells it by the store."""
        with suppress(OSError):
            with socket.create_connection((self._place.master, self._place.port), timeout=CONNECT_SECONDS) as there:
                family, own = there.family, there.getsockname()[0]
            self._listener = socket.create_server((own, 0), family=family)
            store.set(f"at/{self._place.node_rank}", f"{own} {self._listener.getsockname()[1]}")

    def try_next(self, store: Any) -> None:
        threading.Thread(target=self._try_next, args=(store.clone(),), name="reach", daemon=True).start()

    def _try_next(self, store: Any) -> None:
        with suppress(RuntimeError):  # the store has gone: the gang ends
            self._look(store)
            if self._place.node_rank == 0:
                store.wait([_APART], timedelta(seconds=3 * CONNECT_SECONDS))
                self._herald.tell(store.get(_APART).decode())
        if self._listener is not None:
            threading.Event().wait(OPEN_SECONDS)
            self._listener.close()

    def _look(self, store: Any) -> None:
        node, key = self._place.node_rank, f"at/{(self._place.node_rank + 1) % self._place.nodes}"
        if not store.check([key]):
            return
        address, port = store.get(key).decode().split()
        try:
            socket.create_connection((address, int(port)), timeout=CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            return  # it was too late
        except OSError as error:
            words = (
                f"node {node} has met node {key[3:]} and does not reach it at {address}:{port} "
                f"({error.strerror or error}); check that a NetworkPolicy lets the job's pods reach one another on "
                "every port, not on that of node 0 alone"
            )
            self._herald.say(words)
            store.set(_APART, words)
