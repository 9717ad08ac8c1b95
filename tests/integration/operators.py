"""The operator as a real process against the control plane, one namespace to itself, so that tests disturb nobody."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cluster.kube import Kube
from cluster.paths import CHECKOUT


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Operator:
    """One operator process for one namespace; ``settings`` are its ``TRAINWRIGHT_`` variables without the prefix."""

    kube: Kube
    namespace: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, ready: float = 60) -> Operator:
        self.spawn()
        self._until(lambda: self.metrics() is not None, ready)
        return self

    def spawn(self) -> Operator:
        """Its process, of which nothing was heard yet."""
        self.http_port = free_port()
        own = {
            "NAMESPACES": self.namespace,
            "OPERATOR_NAMESPACE": self.namespace,
            "HTTP_PORT": str(self.http_port),
            "PROGRESS_PORT": "0",
            **self.settings,
        }
        environment = {**os.environ, "KUBECONFIG": str(self.kube.kubeconfig)}
        environment |= {f"TRAINWRIGHT_{name}": value for name, value in own.items()}
        self.log = self.folder / f"operator-{self.http_port}.log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "trainwright_operator.main"]
            self.process = subprocess.Popen(command, env=environment, cwd=CHECKOUT, stdout=log, stderr=log)
        return self

    def wait_leading(self, seconds: float = 60) -> Operator:
        self._until(lambda: (self.metrics() or {}).get("trainwright_leading") == 1, seconds)
        return self

    def wait_serving(self, seconds: float = 60) -> None:
        """Until progress can be pushed, a moment after it leads."""
        self._until(lambda: (self.metrics() or {}).get("trainwright_progress_serving") == 1, seconds)

    def kill(self) -> None:
        """As a node that vanishes: no time to hand anything over."""
        self._stop(signal.SIGKILL)

    def again(self, leading: bool = True) -> Operator:
        """Another process in the place of one that was killed, as if the time of its Lease had passed."""
        self.kube.delete("Lease", "trainwright-operator", self.namespace)
        if not leading:
            return self.spawn()
        return self.start().wait_leading()

    def stop(self) -> int:
        return self._stop(signal.SIGTERM)

    def metrics(self) -> dict[str, float] | None:
        """Every sample by its name and labels; None while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=2) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return None
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[0] != "#"}

    def probe(self, path: str) -> str:
        """What a probe is answered, be it good or not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return str(answer.read().decode().strip())
        except urllib.error.HTTPError as error:
            return error.read().decode().strip()

    def requests(self) -> Counter[str]:
        """Requests so far that were answered well, by verb."""
        found: Counter[str] = Counter()
        for name, value in (self.metrics() or {}).items():
            matched = re.match(r'trainwright_api_requests_total\{code="20\d",verb="(\w+)"\}', name)
            if matched:
                found[matched[1]] += int(value)
        return found

    def _stop(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def _until(self, true, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the operator did not get ready:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
