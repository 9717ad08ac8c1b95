"""Forks that prove that they came to life: of a process with live threads, which may hold a lock at that moment.

A child has the one thread that forked, and every lock as it stood: one that another thread held is never released in
it. So a child touches the locks that it would meet first, those of the interpreter, the dynamic linker and the C
library, and says that it lives; one that says nothing in time is killed, and another one is forked at a better moment.
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
"""Seconds that each child is waited for: one that lives says so within milliseconds, but on a machine that is full."""

ALIVE = b"A"


class StartError(RuntimeError):
    """No process came to life."""


class Lines:
    """The lines that come out of a pipe, each read when it is asked for.

    Attributes:
        ended: Whether nobody is left who could write one.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._read = b""

    def next(self, seconds: float | None) -> bytes | None:
        """The next line; None when there is none in time, or ever. ``None`` waits as long as it takes."""
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
    """Run ``body`` in a forked child: its process id, and the pipe whose writing end ``body`` is given.

    Args:
        body: Returns the child's exit code.
        what: Of the child, for the message.

    Raises:
        StartError: No child lived long enough to say so.
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
    with warnings.catch_warnings():  # newer versions of Python warn of threads, which is what the proof is for
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
    """Take, for a moment, each lock that a fork is known to have been caught by."""
    library = ctypes.CDLL(None)
    nothing = ctypes.cast(library.getpid, ctypes.c_void_p)
    library.dl_iterate_phdr(nothing, None)  # those of the dynamic linker
    library.__cxa_atexit(nothing, None, None)  # that of what is done at the exit
    torch.set_num_threads(1)  # those of torch's pools
    torch.ones(1).add_(1)
