"""Starts a pod's command so that it does not outlive the runner: ``python child.py RUNNER_PID COMMAND...``.

Linux can signal a process when its parent dies. Requesting that in Python between fork and exec would run Python code
in a fork of a threaded program, which is unsafe; this small program does it after the fork instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def main(runner: int, command: list[str]) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != runner:
        sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
