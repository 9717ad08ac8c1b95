"""Stops a gang many times over, at random moments on random ranks; every rank notes after which step it stopped.

Arguments: folder, rounds, seed. A round is a run of its own: its listeners are made and ended. Steps are collectives as
in data-parallel training; now and then one is slow, as an evaluation or a save is.
"""

import os
import random
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

from trainwright.distributed.preemption import Preemption

folder, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal that comes after a round is nobody's


def stop_at(round_number: int) -> list[float]:
    """When, in seconds after the start of the round, this rank gets SIGTERM; every rank draws for all."""
    draw = random.Random(f"{seed}/{round_number}")
    victims = draw.sample(range(world_size), draw.randint(1, world_size))
    delays = {victim: [draw.uniform(0, 0.03) for _ in range(draw.randint(1, 2))] for victim in victims}
    return delays.get(rank, [])


def train(round_number: int) -> int:
    slow = random.Random(f"{seed}/{round_number}/{rank}")
    with Preemption() as preemption:
        timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)) for delay in stop_at(round_number)]
        for timer in timers:
            timer.start()
        step = 0
        while not preemption.begin(step):
            if slow.random() < 0.05:
                time.sleep(0.005)
            dist.all_reduce(torch.ones(1))
            step += 1
        for timer in timers:
            timer.join()
    return step


stops = []
for number in range(rounds):
    stops.append(train(number))
    dist.barrier()
with open(f"{folder}/stops-{rank}", "w") as file:
    file.write(" ".join(map(str, stops)))
dist.destroy_process_group()
