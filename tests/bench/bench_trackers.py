"""What a tracker adds to a step of the small MLP that logs every step, and what a tracker whose server hangs adds.

    cd tests && OMP_NUM_THREADS=1 python -m bench.bench_trackers [--rounds 7] [--steps 3000] [tracker ...]

Measured is the time of the processor between the first and the last step, of all threads, so that a busy machine
changes little; rounds are interleaved, and the median of the ratios of neighbours is taken. A tracker that is not
installed is left out: run it by the Python of `make trackers`.
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
from trainwright.integrations.trackers import tracker
from trainwright.integrations.trackers.tracker import Facts, Row, Tracker

LIMIT = 1.02
WARM_UP = 200


class Hanging(Tracker):
    """A tracker whose server takes the connection and never answers."""

    name = "hanging"
    release = threading.Event()

    def begin(self, facts: Facts) -> str | None:
        return None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        self.release.wait()


class Clock(TrainerCallback):
    began = ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.began = time.process_time()
        if state.global_step == args.max_steps:
            self.ended = time.process_time()


def microseconds(name: str | None, data: list[Any], steps: int) -> float:
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
    return (clock.ended - clock.began) / steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("trackers", nargs="*", default=["hanging", "tensorboard"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("WANDB_MODE", "offline")
    tracker.IDLE_SECONDS = 0.5
    data = vectors()
    microseconds(None, data, 200)
    print(f"{'tracker':<14}{'us without':>12}{'us with':>10}{'ratio':>8}  limit")
    for name in options.trackers:
        if name != "hanging" and find_spec(name) is None:
            print(f"{name:<14} is not installed")
            continue
        pairs = [(microseconds(None, data, options.steps), microseconds(name, data, options.steps))
                 for _ in range(options.rounds + 1)][1:]  # fmt: skip
        ratio = statistics.median(after / before for before, after in pairs)
        before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
        verdict = "within" if ratio <= LIMIT else "OVER"
        print(f"{name:<14}{before:>12.0f}{after:>10.0f}{ratio:>8.3f}  {verdict} {LIMIT}", flush=True)


if __name__ == "__main__":
    main()
