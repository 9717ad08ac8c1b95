"""How the launchers of a gang tell each other of a failure and of the end, through the store that node 0 keeps.

A lost rank shows to its peers as a broken connection, or with some backends not at all; and the store dies with node
0's launcher. So who fails says so, everyone else hears it within milliseconds, and node 0 leaves last.
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
"""How long node 0 keeps the store after it told of a failure."""
_FOREVER = timedelta(days=20)  # milliseconds are counted in 32 bits


class Peers:
    """One launcher's view of the others. ``news`` is the first failure it heard of, or that node 0 is gone."""

    def __init__(self, store: Any, node_rank: int, nodes: int) -> None:
        self.news: Failure | None = None
        self._node_rank, self._nodes = node_rank, nodes
        self._ear, self._mouth = store.clone(), store.clone()  # a waiting connection is locked
        self._told = self._done = False
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def _listen(self) -> None:
        key = f"lost/{self._node_rank}"
        try:
            self._ear.wait([key], _FOREVER)
            self.news = Failure(**json.loads(self._ear.get(key)), by=EndedBy.PEER)
        except RuntimeError:
            if not self._done:  # else node 0 has left, as it may
                words = "node 0 is gone: its pod ended without a word"
                self.news = Failure(1, words, node=0, by=EndedBy.LOST)

    def tell(self, failure: Failure) -> None:
        """Tells every other node, once; a store that is gone has no listeners left."""
        others = [f"lost/{node}" for node in range(self._nodes) if node != self._node_rank]
        if not self._told:
            self._told = True
            told = asdict(replace(failure, node=self._node_rank))
            words = json.dumps({name: value for name, value in told.items() if name != "by"})
            with suppress(RuntimeError):
                self._mouth.multi_set(others, [words] * len(others))

    def all_done(self) -> bool:
        """Says that this node is done; whether it may leave: node 0, which keeps the store, only after all others."""
        try:
            said, self._done = self._done, True
            done = int(self._mouth.add("done", 0 if said else 1))
        except RuntimeError:
            return True
        return self._node_rank != 0 or done >= self._nodes

    def leave(self) -> None:
        """Keeps the store until the others have heard what was told."""
        if self._told and self._node_rank == 0:
            time.sleep(DELIVERY_SECONDS)
