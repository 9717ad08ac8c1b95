"""The duties of PID 1: whoever loses its parent in this pod becomes ours, and must be waited for.

Data loader workers and helpers of a rank that died would otherwise stay as zombies. The ranks themselves are left to
their own handles: reaping one here would lose its exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Container
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process, where it is not PID 1 and so their parent anyway."""
    if os.getpid() != 1:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(ours: Container[int]) -> None:
    """Waits for every ended child that is not in ``ours``; never blocks."""
    with suppress(ChildProcessError):
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in ours:
                return  # the next look comes after its owner took note of it
            os.waitpid(ended.si_pid, os.WNOHANG)


def exit_code_of(pid: int) -> int | None:
    """How a child ended, 128 + the signal's number for one that was killed; None while it runs. Leaves it to be reaped.

    Raises:
        ChildProcessError: it was reaped already.
    """
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return int(ended.si_status) if ended.si_code == os.CLD_EXITED else 128 + int(ended.si_status)


def send(pid: int, signum: signal.Signals) -> None:
    """To one process, which may be gone: its own children are its own business while it ends in order."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def kill_group(pid: int) -> None:
    """A rank leads a process group of its own: it and whatever it left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
