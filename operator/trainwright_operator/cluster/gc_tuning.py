"""Python's collector of cycles, kept from walking all that is known of the cluster.

A full collection over ten thousand jobs takes a second, in which no push is answered and no pod looked at; and while
they are loaded it runs again and again. What is known of the cluster holds no cycles: it is freed without a collector.
But each connection of a pusher is one cycle, with its TLS buffers: the young are collected often, and so in a moment.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 5_000, 10, 400
"""Python's own are 700, 10 and 10. While 2,000 trainers push, the young are looked at for 10 ms twice a second, what
survived ten times for 25 ms every five seconds, and all together twice an hour at most."""


@contextmanager
def spared() -> Iterator[None]:
    """Collect nothing while much is loaded that stays; what there is afterwards is never walked."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        gc.enable()
