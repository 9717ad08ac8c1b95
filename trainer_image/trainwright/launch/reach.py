"""Whether nodes that have met reach each other on any port: collectives choose theirs, and wait long where one is shut.

Each node tries the next one once, on a port that nobody has heard of before. What fails is said in the log and, by
node 0, to the operator; nothing is ended for it, for collectives may go another way.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

from trainwright.launch.herald import Herald
from trainwright.launch.rendezvous import Place

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
