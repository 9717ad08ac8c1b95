"""The launcher's side of ``spec.preflight``: every rank checks its device and network before the first round, in time.

The checks run as a round of their own (:mod:`trainwright.launch.preflight`). One that fails, or stands still, ends the
pod like any failure of a rank, so its node is the one that failed first.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_RUNTIME, RUNTIMES, ExitCode, ResolvedJob, UserError
from trainwright.launch.nodefiles import Pulse
from trainwright.launch.preflight import LOCAL_STAGES, STAGES, Settings
from trainwright.launch.rendezvous import Place, RendezvousFailed
from trainwright.launch.supervisor import Stop, Supervisor
from trainwright.launch.verdict import Failure
from trainwright.launch.watchdog import NAMING_SECONDS, Watchdog

STILL_SECONDS = 5.0
"""A rank that does not beat for so long stands still; its checks run in another thread than its beats."""
STORE_SECONDS = 30.0
_NEXT = "preflight/next"


def settings_of(job: ResolvedJob) -> Settings:
    given = job.preflight or {}
    return Settings(given["timeoutSeconds"], given["maxSlowdown"], job.training_arguments.get("ddp_backend"))


def check(job: ResolvedJob, place: Place, gang: Any, agent: Any, folder: Path, stop: Stop) -> Failure:
    """Run the checks of this node's ranks; the code of the result is 0 if the first round may start.

    Raises:
        UserError: the runtime is one of TPUs.
        RendezvousFailed: node 0 is gone.
    """
    runtime = os.environ.get(ENV_RUNTIME) or RUNTIMES[0]
    if runtime != RUNTIMES[0]:
        raise UserError(f"preflight: it has no checks for TPUs ({ENV_RUNTIME}={runtime}); remove spec.preflight")
    own, settings = folder / "preflight", settings_of(job)
    own.mkdir()
    checks = Checks(own, job.grace_period_seconds, Deadline(settings.timeout_seconds), stop)
    agent.run(gang, place, ["-u", "-m", "trainwright.launch.preflight", settings.to_json()], checks, round=1)
    end = checks.result()
    checks.sweep()
    checks.close()
    if end.code == ExitCode.DONE:
        _renew(place, gang)
    return end


def _renew(place: Place, gang: Any) -> None:
    """Open the store of the first round: in the one of the checks, the nodes have said that they are done."""
    try:
        if place.node_rank == 0:
            gang.base.set(_NEXT, str(gang.renew()))
        else:
            gang.base.wait([_NEXT], timedelta(seconds=STORE_SECONDS))
            gang.renew(int(gang.base.get(_NEXT)))
    except RuntimeError as error:
        raise RendezvousFailed(f"node {place.node_rank}: node 0 was lost after the preflight: {error}") from error


class Deadline(Watchdog):
    """The time limit of the checks. The node of the rank that the others wait for speaks first."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._began: float | None = None
        self._beats: dict[int, tuple[int, float]] = {}

    def hangs(self, pulses: Sequence[Pulse], now: float) -> bool:
        self._began = now if self._began is None else self._began
        for index, pulse in enumerate(pulses):
            if self._beats.get(index, (-1, 0.0))[0] != pulse.beats:
                self._beats[index] = (pulse.beats, now)
        late = now - self._began - self.timeout
        return late > (0 if self.to_blame(pulses, now) is not None else NAMING_SECONDS)

    def to_blame(self, pulses: Sequence[Pulse], now: float) -> int | None:
        """The first rank of this node that stands still, or is in a stage in which it waits for nobody."""
        for index, pulse in enumerate(pulses):
            is_still = now - self._beats[index][1] > STILL_SECONDS
            if pulse.step < LOCAL_STAGES or (is_still and pulse.step < len(STAGES) - 1):
                return index
        return None


class Checks(Supervisor):
    """Supervises the ranks that check."""

    def __init__(self, folder: Path, grace_seconds: float, deadline: Deadline, stop: Stop) -> None:
        super().__init__(folder, grace_seconds, deadline, stop)
        self._limit = deadline

    def hang(self, now: float) -> Failure:
        pulses, host = self._pulses(), socket.gethostname()
        late = f"within {self._limit.timeout:.0f} s (preflight.timeoutSeconds)"
        index = self._limit.to_blame(pulses, now)
        if index is None:
            stage = STAGES[min(pulse.step for pulse in pulses)]
            return Failure(
                ExitCode.HANG,
                f"preflight: on {host} the ranks did not {stage} {late}, and none stands out; check the network "
                "between the nodes",
            )
        rank = self.ranks[index].rank
        return Failure(
            ExitCode.HANG,
            f"preflight: rank {rank} on {host} did not {STAGES[pulses[index].step]} {late}, and the others wait for "
            "it; its stacks are in the log",
            rank=rank,
        )
