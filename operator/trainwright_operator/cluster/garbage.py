"""Python's collector of cycles, kept from walking all that is known of the cluster.

A full collection over ten thousand jobs takes a second, in which no push is answered and no pod looked at; and while
they are loaded it runs again and again. What is known of the cluster holds no cycles: it is freed without a collector.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 50_000, 20, 100
"""Python's own are 700, 10 and 10: full collections become so rare that they cost nothing to speak of."""


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
