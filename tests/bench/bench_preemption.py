"""What agreeing to stop, and a heartbeat, cost a step: beside what a collective in every step would cost.

Run: OMP_NUM_THREADS=1 python tests/bench/bench_preemption.py
Two processes over gloo on loopback. Prints microseconds for one step of each kind.
"""

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from trainwright.distributed.preemption import Preemption
from trainwright.launch.entry import finish
from trainwright.launch.nodefiles import Heartbeat

WORLD_SIZE = 2
STEPS = 200_000
COLLECTIVES = 2_000


def microseconds(step: Callable[[int], object], steps: int) -> float:
    """The best of five, without the loop itself."""

    def best(function: Callable[[int], object]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for number in range(steps):
                function(number)
            times.append(time.perf_counter() - start)
        return min(times) / steps * 1e6

    return best(step) - best(lambda number: None)


def measure(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    flag, heartbeat = torch.zeros(1), Heartbeat(Path(folder) / f"heartbeat-{rank}")
    with Preemption() as preemption:
        rows = {
            "preemption.begin": microseconds(preemption.begin, STEPS),
            "heartbeat.beat": microseconds(heartbeat.beat, STEPS),
            "all_reduce of a flag": microseconds(lambda number: dist.all_reduce(flag), COLLECTIVES),
        }
    if rank == 0:
        for name, cost in rows.items():
            print(f"{name:22} {cost:10.3f} us   {cost / rows['preemption.begin']:8.1f} x")
    finish()


if __name__ == "__main__":
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        torch.multiprocessing.start_processes(measure, args=(port, folder), nprocs=WORLD_SIZE, start_method="spawn")
