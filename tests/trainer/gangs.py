"""Starts real launchers, one a node, as the pods of a TrainingJob would; used by the tests of the launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainwright.contract import ResolvedJob, Termination

LONGEST = 120.0


class Gang:
    """The nodes of one attempt on loopback. A context manager: no process outlives it."""

    def __init__(
        self, folder: Path, inline: str | None = None, *, nodes: int = 1, per_node: int = 1, **job: Any
    ) -> None:
        self.folder, self.nodes, self.per_node = folder, nodes, per_node
        self.environment: dict[str, str] = {}
        self.python = sys.executable
        self.command = ["-m", "trainwright.launcher"]
        if inline is not None:
            job["script"] = {"inline": inline}
        resolved = ResolvedJob("job", "default", "uid", job.pop("attempt", 1), nodes, per_node, **job)
        (folder / "job.json").write_text(resolved.to_json())
        (folder / "output").mkdir(exist_ok=True)
        self.launchers: dict[int, subprocess.Popen[bytes]] = {}
        self.port = free_port()

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for launcher in self.launchers.values():
            for child in children(launcher.pid):
                _kill_group(child)
            launcher.kill()
            launcher.wait()

    def stop(self, node: int) -> None:
        """Ends a launcher that has started no rank yet."""
        self.launchers[node].kill()
        self.launchers.pop(node).wait()

    def start(self, *nodes: int) -> Gang:
        """Starts the given nodes, all by default."""
        for node in nodes or range(self.nodes):
            with self._log(node).open("wb") as log:
                self.launchers[node] = subprocess.Popen(
                    [self.python, *self.command],
                    env=self._environment(node), stdout=log, stderr=subprocess.STDOUT, cwd=self.folder,
                )  # fmt: skip
        return self

    def _environment(self, node: int) -> dict[str, str]:
        return {
            **os.environ,
            "PET_NNODES": str(self.nodes),
            "PET_NPROC_PER_NODE": str(self.per_node),
            "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder),  # a launcher that is killed leaves its folder behind
            # c10d looks up the name of every peer's address; a machine whose DNS does not answer waits 5 s for each.
            "RES_OPTIONS": "timeout:1 attempts:1",
            "TRAINWRIGHT_JOB_FILE": str(self.folder / "job.json"),
            "TRAINWRIGHT_OUTPUT_DIR": str(self.folder / "output"),
            "TRAINWRIGHT_TERMINATION_FILE": str(self.folder / f"termination-{node}"),
            **self.environment,
        }

    def signal(self, node: int, signum: int = signal.SIGTERM) -> None:
        self.launchers[node].send_signal(signum)

    def wait(self, seconds: float = LONGEST) -> list[int]:
        """Exit codes of all nodes; fails when one still runs after ``seconds``."""
        deadline = time.monotonic() + seconds
        return [self.launchers[node].wait(max(0.1, deadline - time.monotonic())) for node in sorted(self.launchers)]

    def await_file(self, name: str, seconds: float = LONGEST) -> str:
        """The text of a file that a rank writes to the folder when it is ready."""
        deadline = time.monotonic() + seconds
        while not (path := self.folder / name).exists() or not path.read_text():
            assert time.monotonic() < deadline, f"no {name}; log:\n{self.log(0)}"
            time.sleep(0.02)
        return path.read_text()

    def await_log(self, text: str, node: int = 0, seconds: float = LONGEST) -> None:
        """Returns when a node's log holds ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.log(node):
            assert time.monotonic() < deadline, self.log(node)
            assert self.launchers[node].poll() is None, self.log(node)
            time.sleep(0.02)

    def log(self, node: int = 0) -> str:
        return self._log(node).read_text(errors="replace")

    def _log(self, node: int) -> Path:
        return self.folder / f"log-{node}"

    def word(self, node: int = 0) -> Termination:
        """The termination message of a node."""
        word = Termination.from_json((self.folder / f"termination-{node}").read_text())
        assert word is not None
        return word

    def run(self, seconds: float = LONGEST) -> list[int]:
        return self.start().wait(seconds)


def children(pid: int) -> list[int]:
    """Of a process, by /proc."""
    try:
        found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in found for child in text.split()]


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        return


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
