"""Programs that go on after the command that started them: started, watched, and found again by a later command.

A process id alone can be another process by tomorrow, so what is kept beside it is the time it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.say import ClusterError

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Daemon:
    """One program of a cluster, with its log and its process id in the cluster's state folder."""

    name: str
    argv: list[str]
    state: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the program prints; every start appends."""
        return self.state / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C at the command ends the command alone."""
        if self.alive():
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self._record.write_text(json.dumps({"pid": process.pid, "started": start_time(process.pid)}))

    def pid(self) -> int | None:
        """The process id, or None when the program does not run."""
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return None
        same = record["started"] is not None and start_time(record["pid"]) == record["started"]
        return record["pid"] if same else None

    def alive(self) -> bool:
        """Whether it runs."""
        return self.pid() is not None

    def stop(self, grace: float = 10) -> None:
        """Ask it to end, and make it end after ``grace`` seconds."""
        self._end(signal.SIGTERM, grace)
        self._end(signal.SIGKILL, 5)
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL, 5)

    def give_way(self, nice: int = 10) -> None:
        """Let what else runs on this machine go first. Linux may share the processors by session, then that is nice."""
        pid = self.pid()
        if pid is None:
            return
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until ``ready()``; a program that ended meanwhile is reported with the last lines of its log."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive():
                raise ClusterError(f"{self.name} ended while starting; the last lines of {self.log}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} was not ready after {seconds:g} s; last of {self.log}:\n{self.tail()}")
            time.sleep(POLL_SECONDS)

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def _record(self) -> Path:
        return self.state / "run" / f"{self.name}.json"

    def _end(self, number: signal.Signals, seconds: float) -> None:
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            _reap(pid)
            time.sleep(POLL_SECONDS)


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def resident_mib(pid: int) -> float:
    """The memory that only this process holds plus its share of what it shares, in MiB; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def _reap(pid: int) -> None:
    """Collect a child of this very process; one that an earlier command started has init for a parent."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
