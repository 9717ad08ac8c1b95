"""One command at a time on one thing: a lock on the thing's own folder, which goes with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.say import say


@contextmanager
def alone(folder: Path, waiting: str) -> Iterator[None]:
    """Hold the folder's lock, made where it is not there; say ``waiting`` when somebody else holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            if not _try(handle):
                say(waiting)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(handle, folder):
                yield
                return
        finally:
            os.close(handle)


def held(folder: Path) -> bool:
    """Whether somebody holds the folder's lock now."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(handle)
    finally:
        os.close(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(handle: int, folder: Path) -> bool:
    """Whoever held it before may have removed the folder: a lock on what is gone keeps nobody out."""
    return folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
