"""Fork a process with several threads, verify that the child runs, and retry if it does not.

A child has only the thread that forked, and a copy of every lock. A lock that another thread held at that moment is
never released in the child. Therefore the child takes the locks that it would need first (interpreter, dynamic linker,
C library) and then reports that it runs. A child that does not report in time is killed, and the fork is retried.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import util

import torch

PATIENCE: Sequence[float] = (1.0, 4.0, 15.0, 40.0)
"""Seconds to wait for each child: a child that runs reports within milliseconds, except on an overloaded machine."""

ALIVE = b"A"


class StartError(RuntimeError):
    """No child process started."""


class Lines:
    """The lines of a pipe, read on request.

    Attributes:
        ended: Whether all writers have closed the pipe.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._read = b""

    def next(self, seconds: float | None) -> bytes | None:
        """Return the next line; None after the timeout or at the end. ``seconds=None`` waits without timeout."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._read and not self.ended:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.fd], [], [], left)[0]:
                return None
            received = os.read(self.fd, 4096)
            self._read, self.ended = self._read + received, not received
        line, found, rest = self._read.partition(b"\n")
        self._read = rest if found else self._read
        return line if found else None


def fork_alive(body: Callable[[int], int], what: str) -> tuple[int, Lines]:
    """Run ``body`` in a forked child; return its process id, and the lines that the child writes.

    Args:
        body: Takes the writing end of the pipe, and returns the child's exit code.
        what: Name of the child in the message.

    Raises:
        StartError: No child reported that it runs.
    """
    for seconds in PATIENCE:
        reader, writer = os.pipe()
        util._flush_std_streams()  # type: ignore[attr-defined]  # or the child writes a second time what is held back
        pid = _fork()
        if pid == 0:
            _be_child(body, reader, writer)
        os.close(writer)
        lines = Lines(reader)
        if lines.next(seconds) == ALIVE:
            return pid, lines
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise StartError(
        f"{what}: {len(PATIENCE)} processes forked for it did not come to life, in {sum(PATIENCE):.0f} s: a thread of "
        "this process holds a lock that each of them waits for; start that thread later, or set dataloader_num_workers "
        "to 0 or dataloader_multiprocessing_context to spawn"
    )


def _fork() -> int:
    with warnings.catch_warnings():  # Python warns about forks with threads; the check covers that
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _be_child(body: Callable[[int], int], reader: int, writer: int) -> None:
    code = 1
    try:
        os.close(reader)
        touch_locks()
        os.write(writer, ALIVE + b"\n")
        code = body(writer)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def touch_locks() -> None:
    """Take and release each lock that is known to have blocked a forked child."""
    library = ctypes.CDLL(None)
    nothing = ctypes.cast(library.getpid, ctypes.c_void_p)
    library.dl_iterate_phdr(nothing, None)  # the locks of the dynamic linker
    library.__cxa_atexit(nothing, None, None)  # the lock of the exit handlers
    torch.set_num_threads(1)  # the locks of torch's thread pools
    torch.ones(1).add_(1)
