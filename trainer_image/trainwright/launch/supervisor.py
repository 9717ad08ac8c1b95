"""Watches over the ranks of one node: forwards a stop, bounds every end, notices hangs, and knows who failed first.

``tick`` is called ten times a second by the agent. What was learnt becomes the pod's exit code by ``verdict.judge``.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainwright.contract import EndedBy, ExitCode
from trainwright.launch import nodefiles, reaper, verdict
from trainwright.launch.entry import DUMP_SIGNAL
from trainwright.launch.peers import Peers
from trainwright.launch.verdict import Failure, RankExit
from trainwright.launch.watchdog import Watchdog

LINGER_SECONDS = 3.0
"""What the others get when a rank failed: enough to fail by themselves and say why, too little to be waited for."""
RESERVE_SECONDS = 5.0
"""Of the grace period, kept for killing what did not end and for the last words."""
DUMP_SECONDS = 1.0
"""What ``faulthandler`` gets to write the stacks of a rank."""


@dataclass
class Rank:
    """A process of this node; ``end`` is None while it runs, ``killed`` when it was this launcher that ended it."""

    local_rank: int
    rank: int
    pid: int
    end: RankExit | None = None
    killed: bool = False


class Overseer:
    """One node's ranks from their start to the last one's end."""

    def __init__(self, folder: Path, grace_seconds: float, watchdog: Watchdog) -> None:
        self.folder = folder
        self.ranks: list[Rank] = []
        self.peers: Peers | None = None
        self.starting = self.stop_requested = False
        self._grace = max(1.0, grace_seconds - RESERVE_SECONDS)
        self._watchdog = watchdog
        self._stopped: EndedBy | None = None
        self._failed = False
        self._hung: Failure | None = None
        self._deadline: float | None = None

    def started(self, pids: Mapping[int, int], first_rank: int) -> None:
        """``pids`` by local rank."""
        self.ranks = [Rank(local, first_rank + local, pid) for local, pid in sorted(pids.items())]

    def tick(self) -> bool:
        """Looks at everything once; True while any rank runs."""
        now = time.monotonic()
        self._note_exits()
        reaper.reap_orphans({rank.pid for rank in self.ranks})
        if not self._failed and self._fails():
            self._failed = True
            self._end_by(now + LINGER_SECONDS)
        elif self._deadline is None and (who := self._asked_to_stop()):
            self._stop(who, now)
        elif self._deadline is None and self._watchdog.hangs(self._pulses(), now):
            self._hang()
        if self._deadline is not None and now >= self._deadline:
            self._kill()
        return bool(self._running())

    def may_leave(self) -> bool:
        """After all ranks of this node ended well: whether no other node needs this launcher any longer."""
        if self.peers is None or self.peers.news is not None:
            return True
        self._stopped = EndedBy.SIGNAL if self.stop_requested else None
        return self.stop_requested or self.peers.all_done()

    def sweep(self) -> None:
        """Ends what the ranks left behind, and gives word the time to reach the other nodes."""
        for rank in self.ranks:
            reaper.kill_group(rank.pid)
        if self.peers is not None:
            self.peers.leave()

    def result(self) -> Failure:
        """How this node ended. One that only lost its peer, or whose ranks agreed with those of another to stop, waits,
        a moment, for the node that knows why.
        """
        patience = time.monotonic() + LINGER_SECONDS
        first = verdict.first_failure(self._own_ends())
        unexplained = first.secondary if first is not None else self._stopped is EndedBy.SCRIPT
        while unexplained and self._waits_for_news() and time.monotonic() < patience:
            time.sleep(0.05)
        return verdict.judge(self._own_ends(), stopped=self._stopped, hung=self._hung, lost=self._news())

    def last_step(self) -> int:
        return max((pulse.step for pulse in self._pulses()), default=0)

    def _running(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.end is None]

    def _own_ends(self) -> list[RankExit]:
        return [rank.end for rank in self.ranks if rank.end is not None and not rank.killed]

    def _pulses(self) -> list[nodefiles.Pulse]:
        return [nodefiles.read_pulse(nodefiles.heartbeat_path(self.folder, rank.local_rank)) for rank in self.ranks]

    def _news(self) -> Failure | None:
        return self.peers.news if self.peers is not None else None

    def _waits_for_news(self) -> bool:
        return self.peers is not None and self.peers.news is None

    def _note_exits(self) -> None:
        for rank in self._running():
            code = reaper.exit_code_of(rank.pid)
            if code is not None:
                error = nodefiles.read_error(self.folder, rank.local_rank)
                when, words, secondary = (
                    (error.time, error.error, error.secondary) if error else (time.time(), None, False)
                )
                rank.end = RankExit(rank.rank, code, when, words, secondary)

    def _fails(self) -> bool:
        """Whether a rank of this node or of another one failed. Tells the others of a failure whose cause is here."""
        first = verdict.first_failure(self._own_ends())
        if first is not None and not first.secondary:
            self._tell(verdict.as_failure(first))
        news = self._news()
        if news is not None and news.code == ExitCode.HANG and self._hung is None:
            self._show_stacks()
        return first is not None or (news is not None and news.code != ExitCode.PREEMPTED)

    def _asked_to_stop(self) -> EndedBy | None:
        """By a signal, by a node that was, or by an own rank that ended as preempted."""
        if self.stop_requested:
            return EndedBy.SIGNAL
        if self._news() is not None:
            return EndedBy.PEER
        return EndedBy.SCRIPT if any(end.code == ExitCode.PREEMPTED for end in self._own_ends()) else None

    def _stop(self, who: EndedBy, now: float) -> None:
        self._stopped = who
        self._end_by(now + self._grace)
        unasked = verdict.unasked(self._own_ends()) if who is EndedBy.SCRIPT else None
        self._tell(unasked or self._news() or Failure(ExitCode.PREEMPTED))
        for rank in self._running():
            # The rank alone: a signal to its group would take its data loader workers from under it.
            reaper.send(rank.pid, signal.SIGTERM)

    def _hang(self) -> None:
        self._hung = Failure(
            ExitCode.HANG,
            f"no rank finished a step for {self._watchdog.timeout:g} s after step {self.last_step()}; "
            "the stacks of every rank are in the log",
        )
        self._tell(self._hung)
        self._show_stacks()
        self._end_by(time.monotonic())

    def _show_stacks(self) -> None:
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

    def _tell(self, failure: Failure) -> None:
        if self.peers is not None:
            self.peers.tell(failure)
