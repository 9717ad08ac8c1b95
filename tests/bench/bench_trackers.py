"""What a tracker adds to a step of the small MLP that logs every step, and what a tracker whose server hangs adds.

    cd tests && OMP_NUM_THREADS=1 python -m bench.bench_trackers [--rounds 20] [--steps 600] [tracker ...]

Three times of a step: that of the processor on the training thread, which the limit is on; that of the processor over
all threads, which sending takes from a machine without a free core; and that of the clock. The queue is kept as full as
a long run fills it, so that sending does not wait for the end. Short runs with and without the tracker take turns in
changing order, and the median of the ratios of neighbours is taken: a busy machine widens the quartiles beside it and
moves the median little. A tracker that is not installed is left out: run it by the Python of `make trackers`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import threading
import time
from importlib.util import find_spec
from typing import Any

import torch

from bench.bench_step import MLP, vectors
from trainwright import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trainwright.integrations.trackers import sender, tracker
from trainwright.integrations.trackers.tracker import Facts, Row, Tracker

LIMIT = 1.02
WARM_UP = 300
BACKLOG = 400
"""Rows that may wait: the sender rests until half of them do, which the warm-up brings about."""
CLOCKS = {"thread": time.thread_time, "process": time.process_time, "wall": time.perf_counter}


class Hanging(Tracker):
    """A tracker whose server takes the connection and never answers."""

    name = "hanging"
    release = threading.Event()

    def begin(self, facts: Facts) -> str | None:
        return None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        self.release.wait()


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.read: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (WARM_UP, args.max_steps):
            self.read.append({name: clock() for name, clock in CLOCKS.items()})


def microseconds(name: str | None, data: list[Any], steps: int) -> dict[str, float]:
    """Of one step, by each of :data:`CLOCKS`."""
    gc.collect()
    clock, installed = Clock(), [] if name in (None, "hanging") else [name]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=WARM_UP + steps, per_device_train_batch_size=32, use_cpu=True, save_strategy="no",
            report_to=installed, disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        added = [Hanging()] if name == "hanging" else []
        trainer = Trainer(MLP(), args, train_dataset=data, callbacks=[clock, *added])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    began, ended = clock.read
    return {name: (ended[name] - began[name]) / steps * 1e6 for name in CLOCKS}


def measure(name: str, data: list[Any], rounds: int, steps: int) -> None:
    pairs = []
    for number in range(rounds + 1):
        order = (None, name) if number % 2 else (name, None)
        taken = {which: microseconds(which, data, steps) for which in order}
        if number > 0:  # the first round imports and fills caches
            pairs.append((taken[None], taken[name]))
    for clock in CLOCKS:
        before, after = (statistics.median(one[clock] for one in side) for side in zip(*pairs, strict=True))
        ratios = [with_it[clock] / without[clock] for without, with_it in pairs]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        verdict = ("within" if ratio <= LIMIT else "OVER") + f" {LIMIT}" if clock == "thread" else ""
        figures = f"{before:>9.0f}{after:>8.0f}{ratio:>8.3f}  {low:.3f} .. {high:.3f}"
        print(f"{name:<13}{clock:<9}{figures}  {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("trackers", nargs="*", default=["hanging", "tensorboard"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("WANDB_MODE", "offline")
    sender.LIMIT, tracker.IDLE_SECONDS, tracker.END_SECONDS = BACKLOG, 0.1, 5.0
    data = vectors()
    microseconds(None, data, 200)
    print("microseconds a step")
    print(f"{'tracker':<13}{'time':<9}{'without':>9}{'with':>8}{'ratio':>8}  {'quartiles':<16}limit")
    for name in options.trackers:
        if name != "hanging" and find_spec(name) is None:
            print(f"{name:<13}is not installed")
            continue
        measure(name, data, options.rounds, options.steps)


if __name__ == "__main__":
    main()
