"""The duties of PID 1: a process that loses its parent in this pod becomes our child, and we must wait for it.

Otherwise the data loader workers of a rank that died would stay as zombies. The ranks themselves are reaped by the
agent, because reaping one here would lose its exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process. PID 1 is their parent anyway."""
    if os.getpid() != 1:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(ours: Container[int]) -> None:
    """Waits for every ended child that is not in ``ours``; never blocks."""
    with suppress(ChildProcessError):
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in ours:
                return  # the owner of this process reaps it before the next call
            os.waitpid(ended.si_pid, os.WNOHANG)


def exit_code_of(pid: int) -> int | None:
    """The exit code of a child, 128 + the signal's number if it was killed; None while it runs. Does not reap it.

    Raises:
        ChildProcessError: the child was reaped already.
    """
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return int(ended.si_status) if ended.si_code == os.CLD_EXITED else 128 + int(ended.si_status)


def send(pid: int, signum: signal.Signals) -> None:
    """Signals one process, which may be gone, and not its children: it stops them itself during an orderly end."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def kill_group(pid: int) -> None:
    """Kills a rank and the processes that it left behind: a rank leads its own process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def sweep(sessions: Iterable[int], mark: str, seconds: float = 5.0) -> bool:
    """Kills all that the ended ranks left behind; returns whether it is gone within ``seconds``.

    Args:
        sessions: The process ids of the ranks, which each led a session.
        mark: A variable that only they and what they started have in their environment, ``NAME=value``.
        seconds: How long these processes may take to end.
    """
    leaders, deadline = frozenset(sessions), time.monotonic() + seconds
    while (left := list(_descendants(leaders, mark.encode()))) and time.monotonic() < deadline:
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.01)
        reap_orphans(())
    reap_orphans(())  # those that have ended since
    return not left


def _descendants(leaders: frozenset[int], mark: bytes) -> Iterator[int]:
    """The living processes of these sessions, and those with ``mark`` that left them."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX" and (int(session) in leaders or mark in (entry / "environ").read_bytes().split(b"\0")):
                yield int(entry.name)
