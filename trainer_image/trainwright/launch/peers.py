"""How the launchers of a gang report failures and their end to each other, through the store on node 0.

Peers see a lost rank as a broken connection, or with some backends not at all; and the store ends with node 0's
launcher. So a failing node reports its failure, all others receive it within milliseconds, and node 0 leaves last.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from trainwright.contract import EndedBy
from trainwright.launch.verdict import Failure

DELIVERY_SECONDS = 0.3
"""How long node 0 keeps the store after it has reported a failure."""
_CLOSED = b"closed"
_FOREVER = timedelta(days=20)  # milliseconds are counted in 32 bits


class Peers:
    """One launcher's view of the others. ``failure`` is the first one reported, or the loss of node 0."""

    def __init__(self, store: Any, node_rank: int, nodes: int) -> None:
        self.failure: Failure | None = None
        self._node_rank, self._nodes = node_rank, nodes
        self._receiver, self._sender = store.clone(), store.clone()  # a waiting connection is locked
        self._reported = self._done = False
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def _listen(self) -> None:
        key = f"lost/{self._node_rank}"
        try:
            self._receiver.wait([key], _FOREVER)
            if (message := self._receiver.get(key)) != _CLOSED:
                self.failure = Failure(**json.loads(message), by=EndedBy.PEER)
        except RuntimeError:
            if not self._done:  # otherwise node 0 has left in order
                message = "node 0 is gone: its pod ended without reporting why"
                self.failure = Failure(1, message, node=0, by=EndedBy.LOST)

    def report(self, failure: Failure) -> None:
        """Reports to every other node, once. If the store is gone, so are the nodes that would listen."""
        others = [f"lost/{node}" for node in range(self._nodes) if node != self._node_rank]
        if not self._reported:
            self._reported = True
            fields = asdict(replace(failure, node=self._node_rank))
            message = json.dumps({name: value for name, value in fields.items() if name != "by"})
            with suppress(RuntimeError):
                self._sender.multi_set(others, [message] * len(others))

    def all_done(self) -> bool:
        """Marks this node as done; returns whether it may leave. Node 0 keeps the store, so it leaves last."""
        try:
            counted, self._done = self._done, True
            done = int(self._sender.add("done", 0 if counted else 1))
        except RuntimeError:
            return True
        return self._node_rank != 0 or done >= self._nodes

    def close(self) -> None:
        """Ends the listener, because the round is over and the next one has its own."""
        with suppress(RuntimeError):
            self._sender.set(f"lost/{self._node_rank}", _CLOSED.decode())

    def leave(self) -> None:
        """Keeps the store until the others have received the reported failure."""
        if self._reported and self._node_rank == 0:
            time.sleep(DELIVERY_SECONDS)
