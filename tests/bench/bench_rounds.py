"""A killed rank, from the kill to the next step of every rank: in place, and as a new attempt. What a start costs.

Real launchers on loopback train a small GPT. ``python -m bench.bench_rounds [RANKS]`` prints the timeline of a restart
in place, with the CPU seconds that it took, beside new launchers with spawned ranks, for two pods and for one of RANKS
ranks; then CPU seconds and memory (PSS) of a pod of RANKS ranks that are forked, beside spawning. A new attempt in a
cluster waits for its pods besides. CPU seconds over the time show whether the cores were the limit, or shared.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.gangs import Gang, children
from trainwright.contract import CLOCK_CAUSES
from trainwright.launch import nodefiles

JOB: dict[str, Any] = {
    "task": "CausalLM",
    "model": {
        "source": "gpt2",
        "fromConfig": {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 128},
        "tokenizer": "bytes",
    },
    "dataset": {"source": "stdlib://a*.py", "blockSize": 64},
    "training_arguments": {
        "max_steps": 100000, "per_device_train_batch_size": 2, "save_steps": 10, "save_total_limit": 2,
        "logging_steps": 50, "ddp_find_unused_parameters": False,
    },
}  # fmt: skip
LONGEST = 600.0


def until(what: Callable[[], Any]) -> float:
    """The time at which ``what`` first holds."""
    deadline = time.time() + LONGEST
    while not what():
        assert time.time() < deadline
        time.sleep(0.02)
    return time.time()


class Pods:
    """A gang whose heartbeats are watched."""

    def __init__(self, gang: Gang) -> None:
        self.gang = gang

    def folders(self, round: int) -> list[Path]:
        return sorted(self.gang.folder.glob(f"trainwright-*/round-{round}"))

    def pulses(self, round: int) -> list[nodefiles.Pulse]:
        ranks = range(self.gang.per_node)
        return [
            nodefiles.read_pulse(nodefiles.heartbeat_path(folder, local))
            for folder in self.folders(round)
            for local in ranks
        ]

    def all_ranks(self, round: int, holds: Callable[[nodefiles.Pulse], bool]) -> bool:
        pulses = self.pulses(round)
        return len(pulses) == self.gang.nodes * self.gang.per_node and all(map(holds, pulses))

    def children(self) -> list[int]:
        return [pid for launcher in self.gang.launchers.values() for pid in children(launcher.pid)]

    def restoring(self) -> float:
        clocks = [nodefiles.read_clock(folder) for folder in self.folders(1)]
        return sum(slots[CLOCK_CAUSES.index("restoring")] for slots in clocks if slots)


def is_warm_parent(pid: int) -> bool:
    """Whether this child of a launcher has one thread; a rank that trains has more."""
    return len(os.listdir(f"/proc/{pid}/task")) == 1


def gang(folder: Path, nodes: int, per_node: int, start: str, attempt: int = 1) -> Gang:
    folder.mkdir(exist_ok=True)
    found = Gang(folder, nodes=nodes, per_node=per_node, attempt=attempt, start_method=start, **JOB)
    found.environment = {"TRAINWRIGHT_RESTARTS_LEFT": "1", "TRAINWRIGHT_VENDOR": "cpu"}
    return found


def in_place(folder: Path, nodes: int, per_node: int) -> dict[str, float]:
    with gang(folder, nodes, per_node, "Fork") as running:
        pods = Pods(running.start())
        until(lambda: pods.all_ranks(1, lambda pulse: pulse.step >= 12))
        parents = [pid for pid in pods.children() if is_warm_parent(pid)]
        launchers = [launcher.pid for launcher in running.launchers.values()]

        def beside() -> float:
            return sum(cpu(pid, children=False) for pid in launchers) + sum(map(cpu, parents))

        victim = next(pid for pid in reversed(pods.children()) if pid not in parents)
        before, began = (machine_cpu(), beside()), time.time()
        os.kill(victim, signal.SIGKILL)
        met = until(lambda: len(pods.folders(2)) == nodes)
        forked = until(lambda: len(pods.children()) == nodes * per_node + len(parents))
        loaded = until(lambda: pods.all_ranks(2, lambda pulse: pulse.beats > 0))
        resumed = max(pulse.step for pulse in pods.pulses(2))
        stepped = until(lambda: pods.all_ranks(2, lambda pulse: pulse.step > resumed))
        machine, others = machine_cpu() - before[0], beside() - before[1]
        ranks = sum(cpu(pid) for pid in pods.children() if pid not in parents)
        log, loading = running.log(), pods.restoring()
    said = log[log.index("(stopped ") :].split()
    noticed = met - began - float(said[5])
    return {
        "noticed": noticed, "stopped": noticed + float(said[1]), "met": met - began, "forked": forked - began,
        "loaded": loaded - began, "first step": stepped - began, "of this loading": loading,
        "CPU of the new ranks": ranks, "of launchers and warm parents": others, "of the whole machine": machine,
    }  # fmt: skip


def new_attempt(folder: Path, nodes: int, per_node: int) -> dict[str, float]:
    """New launchers on the output of the others; without the time of Kubernetes."""
    for left in folder.glob("trainwright-*"):
        left.rename(left.with_name(f"former-{left.name}"))
    with gang(folder, nodes, per_node, "Spawn", attempt=2) as running:
        began = time.time()
        pods = Pods(running.start())
        loaded = until(lambda: pods.all_ranks(1, lambda pulse: pulse.beats > 0))
        resumed = max(pulse.step for pulse in pods.pulses(1))
        stepped = until(lambda: pods.all_ranks(1, lambda pulse: pulse.step > resumed))
        return {"loaded": loaded - began, "first step": stepped - began, "of this loading": pods.restoring()}


def start(folder: Path, ranks: int, method: str) -> tuple[float, float]:
    """CPU seconds until every rank has finished a step, and the memory of all processes of the pod but the launcher."""

    with gang(folder, 1, ranks, method) as running:
        pods = Pods(running.start())
        until(lambda: pods.all_ranks(1, lambda pulse: pulse.step >= 1))
        launcher = running.launchers[0].pid
        memory = sum(map(pss, children(launcher)))
        seconds = sum(map(cpu, [launcher, *children(launcher)]))

    return seconds, memory / 2**20


def cpu(pid: int, children: bool = True) -> float:
    """Seconds of a process, and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


def machine_cpu() -> float:
    """Seconds that all processes of this machine have used."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def show(what: str, times: dict[str, float]) -> None:
    print(f"{what}: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()), flush=True)


def main(ranks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for nodes, per_node in ((2, 1), (1, ranks)):
            place = Path(folder) / f"{nodes}x{per_node}"
            show(f"{nodes} pods of {per_node}, a rank killed, in place", in_place(place, nodes, per_node))
            show(f"{nodes} pods of {per_node}, a new attempt", new_attempt(place, nodes, per_node))
        forked, spawned = (start(Path(folder) / method, ranks, method) for method in ("Fork", "Spawn"))
        for what, one, other in zip(("CPU seconds", "MiB (PSS)"), forked, spawned, strict=True):
            print(f"start of {ranks} ranks: {one:.0f} {what} against {other:.0f}, {one / other:.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
