"""Faults for the processes of a local run, each at a step that a seed chooses.

The processes are found from outside, by the job file in their environment and the heartbeat that a rank has mapped, so
that what is disturbed is the very run that a user starts.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainwright.contract import ENV_JOB_FILE
from trainwright.launch.nodefiles import Pulse, read_pulse

POLL_SECONDS = 0.005
PAUSE_SECONDS = 3.0
HASTE_SECONDS = 0.3
"""How long a pod gets that is asked to stop and killed shortly after: less than most saves take."""
KINDS = {
    "rank": "a rank is killed",
    "pod": "a pod is killed, launcher and ranks at once",
    "stop": "a pod is asked to stop, as by an eviction",
    "hasty": f"a pod is asked to stop and killed {HASTE_SECONDS:g} s later",
    "pause": f"a rank stands still for {PAUSE_SECONDS:g} s",
}


@dataclass(frozen=True)
class Fault:
    """``place`` from 0 to 1 chooses the pod or rank among those that there are."""

    step: int
    kind: str
    place: float


def choose(seed: int, steps: int, count: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
    """``count`` faults at different steps before the last, in order; the same for the same arguments."""
    generator = random.Random(seed)
    places = sorted(generator.sample(range(1, steps), min(count, steps - 1)))
    return [Fault(step, generator.choice(list(kinds)), generator.random()) for step in places]


@dataclass(frozen=True)
class Rank:
    pid: int
    heartbeat: Path
    place: tuple[str, int]
    """Its pod and its number there, which order the ranks."""


class Gang:
    """The processes of a run whose pods have their files below ``scratch``; the pods are children of this process."""

    def __init__(self, scratch: Path) -> None:
        self._mark = f"{ENV_JOB_FILE}={scratch}{os.sep}".encode()

    def processes(self) -> dict[int, dict[str, str]]:
        """Process id -> environment, of every process of every pod."""
        return dict(self._processes())

    def _processes(self) -> Iterator[tuple[int, dict[str, str]]]:
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                pairs = (entry / "environ").read_bytes().split(b"\0")
                if any(pair.startswith(self._mark) for pair in pairs):
                    texts = (os.fsdecode(pair).partition("=") for pair in pairs)
                    yield int(entry.name), {name: value for name, _, value in texts}

    def pods(self) -> list[int]:
        """The launchers, in the order of the pods."""
        found = [(env[ENV_JOB_FILE], pid) for pid, env in self._processes() if _parent(pid) == os.getpid()]
        return [pid for _, pid in sorted(found)]

    def ranks(self) -> list[Rank]:
        """The ranks that have begun to train, in order; none of their data workers, which inherit the heartbeat."""
        found = [
            Rank(pid, path, (env[ENV_JOB_FILE], int(path.name.rpartition("-")[2])))
            for pid, env in self._processes() if (path := _heartbeat(pid)) is not None
        ]  # fmt: skip
        pids = {rank.pid for rank in found}
        return sorted((rank for rank in found if _parent(rank.pid) not in pids), key=lambda rank: rank.place)


def _parent(pid: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _heartbeat(pid: int) -> Path | None:
    """The file that the process has mapped, if it is a rank; the environment that is seen of a forked one is old."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if f"{os.sep}heartbeat-" in line:
                return Path(line[line.index(os.sep) :].removesuffix(" (deleted)"))
    return None


@dataclass
class Strike:
    """What became of a fault. ``seconds`` until every rank finished a step again; ``kept`` is the checkpoint's step."""

    fault: Fault
    step: int
    attempt: int
    victim: str
    seconds: float | None = None
    kept: int | None = None


class Striker:
    """Brings faults about while a run trains, on a thread of its own.

    Args:
        count: The number of ranks.
        attempt: The number of the attempt that runs.
        kept: The step of the newest checkpoint.
        say: Prints one line.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        scratch: Path,
        count: int,
        attempt: Callable[[], int],
        kept: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self._left, self._gang, self._count = list(faults), Gang(scratch), count
        self._attempt, self._kept, self._say = attempt, kept, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="faults", daemon=True)

    def __enter__(self) -> Striker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def left(self) -> list[Fault]:
        """The faults whose steps the run passed before they could be brought about."""
        return list(self._left)

    def _work(self) -> None:
        ranks: list[Rank] = []
        while self._left and not self._over.wait(POLL_SECONDS):
            if not ranks or not all(_alive(rank.pid) for rank in ranks):
                ranks = self._gang.ranks()
                if len(ranks) < self._count:
                    ranks = []
                    self._over.wait(0.05)
                continue
            step = _step([read_pulse(rank.heartbeat) for rank in ranks])
            if step is not None and step >= self._left[0].step:
                self._strike(self._left.pop(0), step, ranks)
                ranks = []

    def _strike(self, fault: Fault, step: int, ranks: list[Rank]) -> None:
        strike = Strike(fault, step, self._attempt(), "")
        before = {*self._gang.processes()}
        began = time.monotonic()
        if fault.kind in ("rank", "pause"):
            number = int(fault.place * len(ranks))
            strike.victim = f"rank {number}"
            _hit_rank(fault.kind, ranks[number].pid, self._over)
        else:
            pods = self._gang.pods()
            number = int(fault.place * len(pods))
            strike.victim = f"pod {number}"
            self._hit_pod(fault.kind, pods[number])
        self._say(f"step {step}: {KINDS[fault.kind].replace('a rank', strike.victim).replace('a pod', strike.victim)}")
        self.strikes.append(strike)
        gone = set() if fault.kind == "pause" else before
        self._wait_until_stepping(strike, began, gone)

    def _hit_pod(self, kind: str, launcher: int) -> None:
        if kind == "pod":
            mine = {pid for pid in self._gang.processes() if _below(pid, launcher)}
            for pid in (launcher, *mine):
                _send(pid, signal.SIGKILL)
            return
        _send(launcher, signal.SIGTERM)
        if kind == "hasty" and not self._over.wait(HASTE_SECONDS):
            self._hit_pod("pod", launcher)

    def _wait_until_stepping(self, strike: Strike, began: float, gone: set[int]) -> None:
        """Wait until all ranks have finished a step after the fault, in new processes if it ends those before."""
        while not self._over.wait(POLL_SECONDS * 4):
            ranks = [rank for rank in self._gang.ranks() if rank.pid not in gone]
            if len(ranks) < self._count:
                continue
            kept = self._kept()
            after = kept if gone else strike.step
            if all(read_pulse(rank.heartbeat).step > after for rank in ranks):
                strike.seconds, strike.kept = time.monotonic() - began, kept
                return


def _step(pulses: list[Pulse]) -> int | None:
    """The step that the ranks have finished; None while one of them trains nothing."""
    if not pulses or any(pulse.resting or pulse.step <= 0 for pulse in pulses):
        return None
    return max(pulse.step for pulse in pulses)


def _hit_rank(kind: str, pid: int, over: threading.Event) -> None:
    if kind == "rank":
        _send(pid, signal.SIGKILL)
        return
    _send(pid, signal.SIGSTOP)
    over.wait(PAUSE_SECONDS)
    _send(pid, signal.SIGCONT)


def _below(pid: int, ancestor: int) -> bool:
    current: int | None = pid
    while current is not None and current > 1:
        if current == ancestor:
            return True
        current = _parent(current)
    return False


def _alive(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _send(pid: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
