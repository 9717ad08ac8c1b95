"""Tunes Python's garbage collector so that it does not scan the cached objects of the cluster.

A full collection with ten thousand jobs takes a second, in which the event loop is blocked, and it runs repeatedly
while they are loaded. The cache has no reference cycles, so it needs no garbage collector. But each connection of a
trainer is a cycle that holds TLS buffers, so the young generation is collected often, which is fast.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 5_000, 10, 400
"""Python's defaults are 700, 10 and 10. While 2,000 trainers push, generation 0 is collected twice a second in 10 ms,
generation 1 every five seconds in 25 ms, and generation 2 at most twice an hour."""


@contextmanager
def spared() -> Iterator[None]:
    """Disable collection while long-lived objects are loaded, then exclude them from all collections."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        gc.enable()
