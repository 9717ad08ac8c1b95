"""A work queue of keys for level-triggered reconciles: one worker per key, coalesced events, backoff after failures.

An event only means *that* something changed; the worker reads the state from the cache. So a key is in the queue at
most once; a key that is added while a worker processes it runs once more afterwards; and a key that failed is retried
with exponential backoff.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_BACKOFF_SECONDS = 0.25
LAST_BACKOFF_SECONDS = 120.0


class KeyedQueue(Generic[Key]):
    """Keys in order of their due time. Use within one event loop.

    ``now`` returns monotonic seconds (default: the loop's clock); ``jitter`` returns the factor that spreads retries.
    """

    def __init__(self, now: Callable[[], float] | None = None, jitter: Callable[[], float] | None = None) -> None:
        self._now = now or (lambda: asyncio.get_running_loop().time())
        self._jitter = jitter or (lambda: random.uniform(0.8, 1.2))
        self._heap: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._held: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._order = 0
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def overdue(self) -> float:
        """Seconds that the first due key has been waiting for a worker."""
        wait = self._until_next()
        return 0.0 if wait is None else max(0.0, -wait)

    def add(self, key: Key, after: float = 0.0) -> None:
        """Make ``key`` due in ``after`` seconds, or keep its time if that is earlier.

        A negative value gives priority: the key goes before all keys that have been due for a shorter time.
        """
        due = self._now() + after
        if key in self._held:
            self._again[key] = min(due, self._again.get(key, due))
        elif due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._order += 1
            heapq.heappush(self._heap, (due, self._order, key))
            if self._heap[0][2] == key:  # the waiting caller waits for another key
                self._changed.set()

    async def get(self) -> Key:
        """The next due key; the caller holds it until it calls :meth:`done`.

        Only one caller waits for the timer and the others wait for it, so that a key wakes up only one.
        """
        async with self._turn:
            while True:
                wait = self._until_next()
                if wait is not None and wait <= 0:
                    return self._take()
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)

    def done(self, key: Key, *, failed: bool = False, after: float | None = None) -> None:
        """Release ``key``. A failed key is retried with backoff; ``after`` requeues it after that time."""
        self._held.discard(key)
        again = self._again.pop(key, None)
        if failed:
            self.add(key, self._backoff(key))
            if again is not None:  # a new event may fix the cause of the failure
                self.add(key, max(again - self._now(), FIRST_BACKOFF_SECONDS))
            return
        self._failures.pop(key, None)
        if again is not None:
            self.add(key, again - self._now())
        if after is not None:
            self.add(key, after)

    def forget(self, key: Key) -> None:
        """Remove a key that no longer exists."""
        self._due.pop(key, None)
        self._again.pop(key, None)
        self._failures.pop(key, None)

    def _backoff(self, key: Key) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 20)) * self._jitter()

    def _until_next(self) -> float | None:
        """Seconds until the earliest key is due; None if the queue is empty. Drops superseded entries."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due:
                return due - self._now()
            heapq.heappop(self._heap)
        return None

    def _take(self) -> Key:
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._held.add(key)
        return key
