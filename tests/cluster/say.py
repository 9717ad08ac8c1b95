"""What the harness tells people: lines of progress on stderr, and errors that are one line each."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class ClusterError(Exception):
    """What went wrong and how to mend it, in one line (a log's last lines may follow)."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - start:.1f} s")
