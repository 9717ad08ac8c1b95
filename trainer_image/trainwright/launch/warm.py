"""The launcher's side of the warm parent, from which ranks are forked: whether there is one, and its forks."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainwright.contract import ENV_RUNTIME, ENV_VENDOR, RUNTIMES, ResolvedJob
from trainwright.launch.warm_parent import LARGEST_MESSAGE, OPEN, QUIET_LIBRARIES

FORK, SPAWN = "Fork", "Spawn"
IMPORT_SECONDS, FORK_SECONDS = 900.0, 60.0
"""After which a parent that does not answer is killed, and ranks are spawned."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
"""A rank that sees one uses the GPU, also where no pool says so: on a machine of one's own."""


class NotWarm(Exception):
    """Ranks cannot be forked, so they are spawned."""


class RankStart(NamedTuple):
    """How one rank differs from the others of its node."""

    environment: dict[str, str]
    streams: list[str]
    """The files for stdout and stderr; empty for those of the parent."""


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
            self._answer(IMPORT_SECONDS)
            self.usable = True
        except NotWarm as reason:
            print(f"trainwright: ranks are spawned, not forked: {reason}", file=sys.stderr, flush=True)

    def fork(
        self, command: Sequence[str], environment: Mapping[str, str], ranks: Mapping[int, RankStart]
    ) -> dict[int, int]:
        """Forks all ranks of the node; none of them begins before the last one is there.

        So a failure leaves no rank running, and no rank takes the processor from the forks of the others.

        Args:
            command: ``["-u", "-m", module, *args]``, as for Python.
            environment: What all ranks have.
            ranks: By local rank.

        Returns:
            The process ids by local rank.

        Raises:
            NotWarm: The parent is gone, does not answer, or must not be forked.
        """
        _, _, module, *args = command
        differ = [start._asdict() for start in ranks.values()]
        request = {"module": module, "args": args, "environment": dict(environment), "ranks": differ}
        gate, opener = os.pipe()
        try:
            self._send(request, gate)
            pids = self._answer(FORK_SECONDS)["pids"]
            os.write(opener, OPEN * len(pids))
            return dict(zip(ranks, pids, strict=True))
        finally:  # a rank that finds the gate closed ends
            os.close(opener)
            os.close(gate)

    def _send(self, request: dict[str, Any], gate: int) -> None:
        try:
            self._channel.settimeout(FORK_SECONDS)
            socket.send_fds(self._channel, [json.dumps(request).encode()], [gate])
        except OSError as error:
            raise self._lost(error) from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        self._channel.settimeout(seconds)
        try:
            message = self._channel.recv(LARGEST_MESSAGE)
        except OSError as error:
            raise self._lost(error) from None
        if not message:
            raise self._lost(None)
        answer: dict[str, Any] = json.loads(message)
        if reason := answer.get("unfit"):
            raise NotWarm(reason)
        return answer

    def _lost(self, error: OSError | None) -> NotWarm:
        self.usable = False
        if error is None or error.errno in (errno.EPIPE, errno.ECONNRESET):
            return NotWarm("the process to fork them from has ended; look whether memory ran out")
        self.process.kill()
        return NotWarm(f"the process to fork them from does not answer ({error.strerror or error})")

    def close(self) -> None:
        """The parent ends, also if it stands still; ranks that were forked go on."""
        self._channel.close()
        self.process.kill()
        self.process.wait()
