"""Supervises the ranks of one node: forwards a stop, bounds every end, detects hangs, and knows who failed first.

The agent calls ``tick`` ten times a second. ``verdict.decide`` turns the result into the pod's exit code.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainwright.contract import ENV_NODE_DIR, EndedBy, ExitCode, restarts_in_place
from trainwright.launch import nodefiles, reaper, verdict
from trainwright.launch.entry import DUMP_SIGNAL
from trainwright.launch.peers import Peers
from trainwright.launch.suspects import suspects
from trainwright.launch.verdict import Failure, RankExit
from trainwright.launch.watchdog import Watchdog

LINGER_SECONDS = 3.0
"""How long the other ranks may run after one failed: enough to fail with their own error, and no long wait."""
RESERVE_SECONDS = 5.0
"""The end of the grace period, reserved for killing remaining ranks and writing the termination message."""
DUMP_SECONDS = 1.0
"""How long ``faulthandler`` may take to write the stacks of a rank."""


@dataclass
class Rank:
    """A process of this node; ``end`` is None while it runs, ``killed`` says that this launcher killed it."""

    local_rank: int
    rank: int
    pid: int
    end: RankExit | None = None
    killed: bool = False


@dataclass
class Stop:
    """Whether this launcher was asked to stop, in whichever round; ``early`` until its first ranks are started."""

    requested: bool = False
    early: bool = True


@dataclass(frozen=True)
class Finding:
    """What one node knows of the end of a round. ``secondary``: the failure began elsewhere, or nobody knows where."""

    failure: Failure
    secondary: bool
    time: float


class Supervisor:
    """The ranks of one node in one round, from their start until the last one has ended.

    ``restarts``: the ranks may start again in place, so after a failure whose cause is known nobody waits for theirs.
    """

    def __init__(
        self, folder: Path, grace_seconds: float, watchdog: Watchdog, stop: Stop | None = None, restarts: bool = False
    ) -> None:
        self.folder = folder
        self.ranks: list[Rank] = []
        self.peers: Peers | None = None
        self.stop = stop or Stop()
        self._restarts = restarts
        self._grace = max(1.0, grace_seconds - RESERVE_SECONDS)
        self._watchdog = watchdog
        self._stopped: EndedBy | None = None
        self._settled = self._shown = False
        self.noticed: float | None = None
        """When the first failure was seen, here or by a report, in seconds since the epoch."""
        self._hung: Failure | None = None
        self._deadline: float | None = None

    def started(self, pids: Mapping[int, int], first_rank: int) -> None:
        """``pids`` by local rank."""
        self.ranks = [Rank(local, first_rank + local, pid) for local, pid in sorted(pids.items())]

    def tick(self) -> bool:
        """Checks the ranks, the peers and the deadlines once; True while any rank runs."""
        now = time.monotonic()
        self._note_exits()
        reaper.reap_orphans({rank.pid for rank in self.ranks})
        if not self._settled and self._has_failed():
            self.noticed = self.noticed or time.time()
            self._settled = not self._restarts or self._knows_cause()
            self._end_by(now if self._restarts and self._settled else now + LINGER_SECONDS)
        elif self._deadline is None and (who := self._stop_requester()):
            self._stop(who, now)
        elif self._deadline is None and self._watchdog.hangs(self._pulses(), now):
            self._handle_hang()
        if self._deadline is not None and now >= self._deadline:
            self._kill()
        return bool(self._running())

    def may_leave(self) -> bool:
        """Whether no other node needs this launcher any longer. Called after all ranks of this node ended well."""
        if self.peers is None or self.peers.failure is not None:
            return True
        self._stopped = EndedBy.SIGNAL if self.stop.requested else None
        return self.stop.requested or self.peers.all_done()

    def sweep(self) -> None:
        """Kills what the ranks left behind, and waits until the other nodes have received a reported failure."""
        for rank in self.ranks:
            reaper.kill_group(rank.pid)
        if self.peers is not None:
            self.peers.leave()

    def result(self) -> Failure:
        """How this node ended. If it only lost its peer, or its ranks agreed with those of another node to stop, it
        waits briefly for the report of the node that knows the reason.
        """
        patience = time.monotonic() + LINGER_SECONDS
        first = verdict.first_failure(self._own_ends())
        unexplained = first.secondary if first is not None else self._stopped is EndedBy.SCRIPT
        while unexplained and self._expects_report() and time.monotonic() < patience:
            time.sleep(0.05)
        return verdict.decide(self._own_ends(), stopped=self._stopped, hung=self._hung, lost=self._peer_failure())

    def finding(self) -> Finding:
        """How the round ended on this node, for the launchers' decision whether it is followed by another one."""
        first = verdict.first_failure(self._own_ends())
        decided = verdict.decide(self._own_ends(), stopped=self._stopped, hung=self._hung, lost=self._peer_failure())
        if self._hung is not None:
            return Finding(decided, secondary=False, time=self.noticed or time.time())
        own = first is not None and decided.by is not EndedBy.PEER
        return Finding(
            decided,
            secondary=first.secondary if first is not None and own else True,
            time=first.order if first is not None and own else time.time(),
        )

    def clear(self) -> bool:
        """Kills what the ranks left behind, which must not run beside the next round; returns whether it is gone."""
        return reaper.sweep([rank.pid for rank in self.ranks], f"{ENV_NODE_DIR}={self.folder}")

    def close(self) -> None:
        """Listens to the other nodes no longer, because the next round does."""
        if self.peers is not None:
            self.peers.close()

    def last_step(self) -> int:
        return max((pulse.step for pulse in self._pulses()), default=0)

    def _running(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.end is None]

    def _own_ends(self) -> list[RankExit]:
        return [rank.end for rank in self.ranks if rank.end is not None and not rank.killed]

    def _pulses(self) -> list[nodefiles.Pulse]:
        return [nodefiles.read_pulse(nodefiles.heartbeat_path(self.folder, rank.local_rank)) for rank in self.ranks]

    def _peer_failure(self) -> Failure | None:
        return self.peers.failure if self.peers is not None else None

    def _expects_report(self) -> bool:
        return self.peers is not None and self.peers.failure is None

    def _note_exits(self) -> None:
        for rank in self._running():
            code = reaper.exit_code_of(rank.pid)
            if code is not None:
                error = nodefiles.read_error(self.folder, rank.local_rank)
                when, message, secondary = (
                    (error.time, error.error, error.secondary) if error else (time.time(), None, False)
                )
                rank.end = RankExit(rank.rank, code, when, message, secondary)

    def _has_failed(self) -> bool:
        """Whether a rank of this node or of another one failed. Reports a failure that began here to the others."""
        first = verdict.first_failure(self._own_ends())
        if first is not None and not first.secondary:
            self._report(verdict.as_failure(first))
        failure = self._peer_failure()
        if failure is not None and failure.code == ExitCode.HANG and self._hung is None and not self._shown:
            self._print_stacks()
        return first is not None or (failure is not None and failure.code != ExitCode.PREEMPTED)

    def _knows_cause(self) -> bool:
        """Whether the first failure explains itself, and ranks restart after it: then nobody needs to wait for others.

        A node that only lost its peers waits for the report of the one that failed.
        """
        if self._stopped is not None:
            return False
        first, reported = verdict.first_failure(self._own_ends()), self._peer_failure()
        if first is not None and not first.secondary:
            return restarts_in_place(first.code)
        return reported is not None and reported.by is not EndedBy.LOST and restarts_in_place(reported.code)

    def _stop_requester(self) -> EndedBy | None:
        """Who asked this node to stop: a signal, another node that was asked, or a rank that ended as preempted."""
        if self.stop.requested:
            return EndedBy.SIGNAL
        if self._peer_failure() is not None:
            return EndedBy.PEER
        return EndedBy.SCRIPT if any(end.code == ExitCode.PREEMPTED for end in self._own_ends()) else None

    def _stop(self, who: EndedBy, now: float) -> None:
        self._stopped = who
        self._end_by(now + self._grace)
        unrequested = verdict.unrequested_stop(self._own_ends()) if who is EndedBy.SCRIPT else None
        self._report(unrequested or self._peer_failure() or Failure(ExitCode.PREEMPTED))
        for rank in self._running():
            # Only the rank: a signal to its group would kill the data loader workers that it still needs.
            reaper.send(rank.pid, signal.SIGTERM)

    def hang(self, now: float) -> Failure:
        """Describe a hang of this node's ranks at ``now``, a monotonic time."""
        return Failure(
            ExitCode.HANG,
            f"no rank finished a step for {self._watchdog.timeout:.0f} s after step {self.last_step()}; "
            f"{self._suspects()}the stacks of every rank are in the log",
        )

    def _handle_hang(self) -> None:
        self._hung = self.hang(time.monotonic())
        self.noticed = time.time()
        self._report(self._hung)
        self._print_stacks()
        self._end_by(time.monotonic())

    def _suspects(self) -> str:
        named = suspects(self.folder, {one.rank: (one.local_rank, one.pid) for one in self.ranks}, time.monotonic())
        return f"{named}; " if named else ""

    def _print_stacks(self) -> None:
        self._shown = True
        for rank in self._running():
            reaper.send(rank.pid, DUMP_SIGNAL)
        time.sleep(DUMP_SECONDS)
        for rank in self._running():
            path = nodefiles.stacks_path(self.folder, rank.local_rank)
            stacks = path.read_text(errors="replace") if path.exists() else "(it left no stacks)\n"
            print(f"--- stacks of rank {rank.rank} ---\n{stacks}", file=sys.stderr, flush=True)

    def _kill(self) -> None:
        for rank in self._running():
            rank.killed = True
            reaper.kill_group(rank.pid)

    def _end_by(self, deadline: float) -> None:
        self._deadline = min(deadline, self._deadline or deadline)

    def _report(self, failure: Failure) -> None:
        if self.peers is not None:
            self.peers.report(failure)
