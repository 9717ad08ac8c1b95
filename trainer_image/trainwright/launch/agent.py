"""Torch's elastic agent, with our supervisor inside.

As in torchrun, the agent keeps the store, numbers the ranks, binds them to cores and starts them. The supervisor, not
torch, handles the end, because torch signals whole process groups, waits 30 s regardless of the grace period, and waits
300 s for nodes that never come.
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
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.launcher.api import LaunchConfig

from trainwright.contract import ENV_NODE_DIR, ENV_ROUND
from trainwright.launch.meeting import GangReporter, ReachabilityCheck
from trainwright.launch.peers import Peers
from trainwright.launch.rank_log import RankLog
from trainwright.launch.rendezvous import Place, RendezvousFailed, Wait, named, network_hint, wait_for_port
from trainwright.launch.supervisor import Supervisor
from trainwright.launch.warm import NotWarm, RankStart, WarmParent

TICK_SECONDS = 0.1
_OURS = (signal.SIGTERM, signal.SIGINT)


class PodAgent(LocalElasticAgent):
    """Starts the ranks of one node and leaves their monitoring to the supervisor."""

    def __init__(
        self, spec: WorkerSpec, logs: PodStreams, supervisor: Supervisor, place: Place, warm: WarmParent | None
    ) -> None:
        super().__init__(spec, logs)
        self._supervisor, self._place, self._warm = supervisor, place, warm
        self._streams = logs
        self._forked: dict[int, int] = {}
        """Process ids by local rank, of ranks that torch does not know."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._warm is not None:
            self._warm.wait()  # a stop still ends this process at once
        self._supervisor.stop.early = False
        if self._place.nodes > 1:
            self._supervisor.peers = Peers(worker_group.store, self._place.node_rank, self._place.nodes)
        if self._fork(worker_group):
            self._supervisor.started(self._forked, self._place.ranks.start)
            return dict(self._forked)
        handlers = {signum: signal.getsignal(signum) for signum in _OURS}
        pids: dict[int, Any] = super()._start_workers(worker_group)
        for signum, handler in handlers.items():  # torch before 2.11 replaces them in spite of its own setting
            signal.signal(signum, handler)
        self._supervisor.started(pids, self._place.ranks.start)
        return pids

    def _fork(self, worker_group: WorkerGroup) -> bool:
        """Whether the ranks were forked from the warm parent; if it cannot, they are spawned."""
        if self._warm is None or not self._warm.usable:
            return False
        own = {worker.local_rank: self._environment(worker_group, worker) for worker in worker_group.workers}
        logs = self._streams.reify(own)
        ranks = {
            local: RankStart(environment, [logs.stdouts[local], logs.stderrs[local]])
            for local, environment in own.items()
        }
        try:
            self._forked = self._warm.fork(list(worker_group.spec.args), os.environ, ranks)
            return True
        except NotWarm as reason:
            print(f"trainwright: ranks are spawned, not forked: {reason}", file=sys.stderr, flush=True)
            return False

    def _environment(self, worker_group: WorkerGroup, worker: Worker) -> dict[str, str]:
        """The variables that torch's agent sets for a rank that it spawns."""
        size, local = worker.world_size, worker_group.spec.local_world_size
        return {
            "RANK": str(worker.global_rank),
            "LOCAL_RANK": str(worker.local_rank),
            "GROUP_RANK": str(worker_group.group_rank),
            "ROLE_RANK": str(worker.role_rank),
            "ROLE_NAME": worker_group.spec.role,
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(local),
            "GROUP_WORLD_SIZE": str(worker_group.group_world_size),
            "ROLE_WORLD_SIZE": str(worker.role_world_size),
            "MASTER_ADDR": str(worker_group.master_addr),
            "MASTER_PORT": str(worker_group.master_port),
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RUN_ID": worker_group.spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }

    def _assign_worker_ranks(
        self, store: Any, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """Ranks follow from the place alone, so no node waits for another one here."""
        size = self._place.nodes * self._place.per_node
        return [
            Worker(local_rank, global_rank=rank, role_rank=rank, world_size=size, role_world_size=size)
            for local_rank, rank in enumerate(self._place.ranks)
        ]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._supervisor.tick():
            return RunResult(state=WorkerState.HEALTHY)
        if self._forked:
            return self._result()
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _result(self) -> RunResult:
        """Of forked ranks, which are children of this process and reaped here."""
        for pid in self._forked.values():
            os.waitpid(pid, 0)
        if any(rank.end is None or rank.end.code for rank in self._supervisor.ranks):
            return RunResult(state=WorkerState.FAILED)
        return RunResult(state=WorkerState.SUCCEEDED, return_values=dict.fromkeys(self._place.ranks))

    def _exit_barrier(self) -> None:
        while not self._supervisor.may_leave():
            time.sleep(TICK_SECONDS)


class GangRendezvous(StaticTCPRendezvous):
    """Torch's static rendezvous, but a waiting node logs which nodes it waits for; torch's store waits silently."""

    def __init__(self, place: Place, run_id: str, reporter: GangReporter, wait: Wait) -> None:
        super().__init__(place.master, place.port, place.node_rank, place.nodes, run_id, place.timeout)
        self._place, self._reporter, self._wait = place, reporter, wait
        self._reachability = ReachabilityCheck(place, reporter)
        self.base: TCPStore | None = None
        """The store of the first round, in which the launchers decide about others. On node 0 it lives as long as this
        object, because the other nodes may need it."""

    def next_rendezvous(self) -> RendezvousInfo:
        if self.base is None:
            self.base = self._store = self._meet()
        return super().next_rendezvous()

    def renew(self, port: int = 0) -> int:
        """Opens the store of the next round; returns its port, which node 0 chooses and the other nodes pass.

        The ranks use the keys of c10d and of their own without a prefix. In a new store, none of an earlier round is
        left, such as a request to stop.

        Raises:
            RuntimeError: node 0 is gone.
        """
        place, timeout = self._place, timedelta(seconds=self._place.timeout)
        leads = place.node_rank == 0
        store = self._store = TCPStore(place.master, port, place.nodes, leads, timeout, wait_for_workers=False)
        self.master_port = int(store.port)
        return self.master_port

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
            self._reachability.open_port(store)
        if place.node_rank > 0:
            store.set(f"here/{place.node_rank}", "1")
            self._wait_for(store, ["met"], self._log_waiting_for_gang)
        elif place.nodes > 1:
            self._wait_for(store, [f"here/{node}" for node in range(1, place.nodes)], self._log_absent_nodes)
            store.set("met", "1")
        self._reporter.met(self._wait)
        if place.nodes > 1:
            self._reachability.check_next(store)
        return store

    def _wait_for(self, store: TCPStore, keys: list[str], on_timeout: Callable[[TCPStore], None]) -> None:
        while True:
            try:
                store.wait(keys, timedelta(seconds=self._wait.patience))
                return
            except DistStoreError:  # some keys are not set yet
                on_timeout(store)

    def _log_absent_nodes(self, store: TCPStore) -> None:
        absent = [node for node in range(1, self._place.nodes) if not store.check([f"here/{node}"])]
        if absent:
            where = f"at {self._place.master}:{self._place.port}"
            self._wait.still_waiting(f"{where} for {named(absent)}", f"see their logs; {network_hint(self._place)}")

    def _log_waiting_for_gang(self, store: TCPStore) -> None:
        self._wait.still_waiting("with node 0 for other nodes", "the log of node 0 says for which")


class PodStreams(LogsSpecs):
    """Sends the output of the ranks to the pod's log; with several ranks, each line is prefixed with its rank."""

    def __init__(self, log: RankLog | None = None, round: int = 1) -> None:
        super().__init__()
        self._log, self._round = log, round

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Also completes the environment of the ranks, which torch passes only here."""
        for environment in envs.values():
            environment["TORCHELASTIC_ERROR_FILE"] = ""
            environment["TORCHELASTIC_RESTART_COUNT"] = str(self._round - 1)
            environment[ENV_ROUND] = str(self._round)
        outputs, errors = (self._streams(envs, name) for name in ("stdout", "stderr"))
        return LogsDest(outputs, errors, {}, {}, dict.fromkeys(envs, os.devnull))

    def _streams(self, envs: dict[int, dict[str, str]], name: str) -> dict[int, str]:
        if self._log is None:
            return dict.fromkeys(envs, "")
        return {local_rank: self._log.pipe(int(envs[local_rank]["RANK"]), name) for local_rank in envs}

    @property
    def root_log_dir(self) -> str:
        return os.devnull


def run(
    gang_rendezvous: GangRendezvous,
    place: Place,
    command: Sequence[str],
    supervisor: Supervisor,
    round: int,
    warm: WarmParent | None = None,
) -> None:
    """Runs ``command`` (arguments to Python) in every rank of this node until the last rank of the round has ended.

    Raises:
        RendezvousFailed: the store could not be created or reached in time.
    """
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the launcher handles the other signals
    os.environ[ENV_NODE_DIR] = str(supervisor.folder)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    log = RankLog(supervisor.folder) if place.per_node > 1 else None
    streams = PodStreams(log, round)
    agent = PodAgent(_spec(place, gang_rendezvous, command), streams, supervisor, place, warm)
    try:
        if log is not None:
            log.start()
        agent.run()
    except RuntimeError as error:
        if supervisor.ranks:
            raise
        raise RendezvousFailed(f"node {place.node_rank}: {place.master}:{place.port}: {_first_line(error)}") from error
    finally:
        if log is not None:
            log.close()


def _spec(place: Place, gang_rendezvous: GangRendezvous, command: Sequence[str]) -> WorkerSpec:
    config = LaunchConfig(place.nodes, place.nodes, place.per_node, logs_specs=PodStreams())
    return WorkerSpec(
        role="trainer",
        local_world_size=place.per_node,
        rdzv_handler=gang_rendezvous,
        entrypoint=sys.executable,
        args=tuple(command),
        max_restarts=0,
        monitor_interval=TICK_SECONDS,
        master_addr=place.master,
        master_port=gang_rendezvous.master_port,
        numa_options=config.numa_options,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
