"""The launcher's side of the warm parent, from which ranks are forked: whether there is one, and its forks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trainwright.contract import ENV_RUNTIME, ENV_VENDOR, RUNTIMES, ResolvedJob
from trainwright.launch.warm_parent import LARGEST_MESSAGE, QUIET_LIBRARIES

FORK, SPAWN = "Fork", "Spawn"
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
"""A rank that sees one uses the GPU, also where no pool says so: on a machine of one's own."""


class NotWarm(Exception):
    """Ranks cannot be forked, so they are spawned."""


def forks(job: ResolvedJob, environment: Mapping[str, str]) -> bool:
    """Whether the ranks of this job are forked.

    Declarative jobs on CPU fork unless told otherwise. A script spawns unless told otherwise: it may set variables that
    libraries read when they are imported, which is too late after a fork.

    Raises:
        NotWarm: The job asks for forks, and cannot have them; says why.
    """
    reason = _hindrance(job, environment)
    if job.start_method == FORK and reason:
        raise NotWarm(reason)
    return not reason and (job.start_method == FORK or (job.start_method is None and job.script is None))


def _hindrance(job: ResolvedJob, environment: Mapping[str, str]) -> str:
    if (environment.get(ENV_RUNTIME) or RUNTIMES[0]) != RUNTIMES[0]:
        return "the runtimes of TPUs do not survive a fork"
    if environment.get(ENV_VENDOR) not in (None, "", "cpu") or any(map(os.path.exists, GPU_DRIVERS)):
        return "that a fork leaves a GPU usable is not proved"
    return "script.overlay replaces modules before they are imported" if job.overlay else ""


class WarmParent:
    """A process that imports what ``python -m module`` will, while the launchers meet."""

    def __init__(self, environment: Mapping[str, str], module: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_MESSAGE)
        with theirs:
            command = [sys.executable, "-u", "-m", "trainwright.launch.warm_parent", str(theirs.fileno()), module]
            self.process = subprocess.Popen(
                command,
                env={**QUIET_LIBRARIES, **environment},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._awaited = self.usable = False
        """``usable``: it is ready, and may be forked."""

    def wait(self) -> None:
        """Returns when it has imported everything. Prints why it may not be forked, if so."""
        if self._awaited:
            return
        self._awaited = True
        try:
            self._answer()
            self.usable = True
        except NotWarm as reason:
            print(f"trainwright: ranks are spawned, not forked: {reason}", file=sys.stderr, flush=True)

    def fork(self, command: Sequence[str], environment: Mapping[str, str], streams: Sequence[str]) -> int:
        """Forks a rank; returns its process id.

        Args:
            command: ``["-u", "-m", module, *args]``, as for Python.
            environment: All of the rank's environment.
            streams: The files for stdout and stderr; empty for those of this process.

        Raises:
            NotWarm: The parent is gone, or must not be forked.
        """
        _, _, module, *args = command
        request = {"module": module, "args": args, "environment": dict(environment), "streams": list(streams)}
        try:
            self._channel.send(json.dumps(request).encode())
        except OSError as error:
            raise NotWarm(f"the process to fork them from has ended ({error.strerror})") from None
        return int(self._answer()["pid"])

    def _answer(self) -> dict[str, Any]:
        with suppress(OSError):
            if message := self._channel.recv(LARGEST_MESSAGE):
                answer: dict[str, Any] = json.loads(message)
                if reason := answer.get("unfit"):
                    raise NotWarm(reason)
                return answer
        raise NotWarm("the process to fork them from has ended; look whether memory ran out")

    def close(self) -> None:
        """The parent ends; ranks that were forked go on."""
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self.process.pid, 0)
