"""Torch's own elastic agent with our overseer in it.

The agent keeps the store, numbers the ranks, binds them to cores and starts them, as torchrun does. What it would do at
the end is left to the overseer: by itself it signals whole process groups, waits 30 s whatever the grace period, and
waits 300 s for nodes that will never come.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.launcher.api import LaunchConfig

from trainwright.launch.meeting import Herald, Reach
from trainwright.launch.peers import Peers
from trainwright.launch.rank_log import RankLog
from trainwright.launch.rendezvous import Place, RendezvousFailed, Wait, checks, named, wait_for_port
from trainwright.launch.supervisor import Overseer

TICK_SECONDS = 0.1
_OURS = (signal.SIGTERM, signal.SIGINT)


class PodAgent(LocalElasticAgent):
    """Starts the ranks of one node, and hands every look at them to the overseer."""

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs, overseer: Overseer, place: Place) -> None:
        super().__init__(spec, logs)
        self._overseer, self._place = overseer, place

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._overseer.starting = True
        if self._place.nodes > 1:
            self._overseer.peers = Peers(worker_group.store, self._place.node_rank, self._place.nodes)
        handlers = {signum: signal.getsignal(signum) for signum in _OURS}
        pids: dict[int, Any] = super()._start_workers(worker_group)
        for signum, handler in handlers.items():  # torch before 2.11 takes them, whatever it is told
            signal.signal(signum, handler)
        self._overseer.started(pids, self._place.ranks.start)
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._overseer.tick():
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _exit_barrier(self) -> None:
        while not self._overseer.may_leave():
            time.sleep(TICK_SECONDS)


class Meeting(StaticTCPRendezvous):
    """Torch's static rendezvous, whose store waits for all nodes without a word: here each says for whom it waits."""

    def __init__(self, place: Place, run_id: str, herald: Herald, wait: Wait) -> None:
        super().__init__(place.master, place.port, place.node_rank, place.nodes, run_id, place.timeout)
        self._place, self._herald, self._wait = place, herald, wait
        self._reach = Reach(place, herald)

    def next_rendezvous(self) -> RendezvousInfo:
        self._store = self._meet()
        return super().next_rendezvous()

    def _meet(self) -> TCPStore:
        place = self._place
        if place.node_rank > 0:
            wait_for_port(place, self._wait)
        store = TCPStore(
            place.master,
            place.port,
            place.nodes,
            place.node_rank == 0,
            timedelta(seconds=place.timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
        if place.nodes > 1:
            self._reach.offer(store)
        if place.node_rank > 0:
            store.set(f"here/{place.node_rank}", "1")
            self._until(store, ["met"], self._as_guest)
        elif place.nodes > 1:
            self._until(store, [f"here/{node}" for node in range(1, place.nodes)], self._as_host)
            store.set("met", "1")
        self._herald.met(self._wait)
        if place.nodes > 1:
            self._reach.try_next(store)
        return store

    def _until(self, store: TCPStore, keys: list[str], goes_on: Callable[[TCPStore], None]) -> None:
        while True:
            try:
                store.wait(keys, timedelta(seconds=self._wait.patience))
                return
            except DistStoreError:  # they are not all there yet
                goes_on(store)

    def _as_host(self, store: TCPStore) -> None:
        absent = [node for node in range(1, self._place.nodes) if not store.check([f"here/{node}"])]
        if absent:
            where = f"at {self._place.master}:{self._place.port}"
            self._wait.goes_on(f"{where} for {named(absent)}", f"see their logs; {checks(self._place)}")

    def _as_guest(self, store: TCPStore) -> None:
        self._wait.goes_on("with node 0 for other nodes", "the log of node 0 says for which")


class PodStreams(LogsSpecs):
    """Ranks write to the pod's own log; each line of several ranks says whose it is."""

    def __init__(self, log: RankLog | None = None) -> None:
        super().__init__()
        self._log = log

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        for environment in envs.values():
            environment["TORCHELASTIC_ERROR_FILE"] = ""
        outputs, errors = (self._streams(envs, name) for name in ("stdout", "stderr"))
        return LogsDest(outputs, errors, {}, {}, dict.fromkeys(envs, os.devnull))

    def _streams(self, envs: dict[int, dict[str, str]], name: str) -> dict[int, str]:
        if self._log is None:
            return dict.fromkeys(envs, "")
        return {local_rank: self._log.pipe(int(envs[local_rank]["RANK"]), name) for local_rank in envs}

    @property
    def root_log_dir(self) -> str:
        return os.devnull


def run(place: Place, run_id: str, command: Sequence[str], overseer: Overseer, herald: Herald, wait: Wait) -> PodAgent:
    """Runs ``command`` (arguments to Python) in every rank of this node until the last one ended.

    On node 0 the store lives as long as the agent that is returned: the other nodes may still need it.

    Raises:
        RendezvousFailed: the store could not be made or reached in time.
    """
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are the launcher's
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    log = RankLog(overseer.folder) if place.per_node > 1 else None
    meeting = Meeting(place, run_id, herald, wait)
    agent = PodAgent(_spec(place, meeting, command), PodStreams(log), overseer, place)
    try:
        if log is not None:
            log.start()
        agent.run()
        return agent
    except RuntimeError as error:
        if overseer.starting:
            raise
        raise RendezvousFailed(f"node {place.node_rank}: {place.master}:{place.port}: {_first_line(error)}") from error
    finally:
        if log is not None:
            log.close()


def _spec(place: Place, meeting: Meeting, command: Sequence[str]) -> WorkerSpec:
    config = LaunchConfig(place.nodes, place.nodes, place.per_node, logs_specs=PodStreams())
    return WorkerSpec(
        role="trainer",
        local_world_size=place.per_node,
        rdzv_handler=meeting,
        entrypoint=sys.executable,
        args=tuple(command),
        max_restarts=0,
        monitor_interval=TICK_SECONDS,
        master_addr=place.master,
        master_port=place.port,
        numa_options=config.numa_options,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
