"""What the Trainer adds to DeepSpeed: a bare loop around ``deepspeed.initialize`` beside it, in the same two ranks.

    cd tests && OMP_NUM_THREADS=1 ../.venv-deepspeed/bin/python -m bench.bench_zero [--rounds 3] [--steps 20]

Both do the same work: the same batches, forward, backward, clipping, AdamW, a linear schedule. Time is that of rank 0's
processor, the median of interleaved rounds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
import torch.distributed
from torch import nn

from bench.bench_fsdp import BATCH, Watch, llama, tokens
from trainer.world import in_world

LIMIT = 1.10
STAGES = (1, 2, 3)


def bare(model: nn.Module, watch: Watch, stage: int) -> None:
    from trainwright.distributed.deepspeed import imported

    deepspeed = imported()
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    steps = watch.last + 1
    data = tokens(steps * BATCH * world)
    loader = torch.utils.data.DataLoader(data[rank::world], BATCH, collate_fn=watch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    config = {
        "train_micro_batch_size_per_gpu": BATCH, "gradient_clipping": 1.0, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.train()
    for batch in loader:
        engine.backward(engine(**batch).loss)
        engine.step()
        schedule.step()
    engine.destroy()


def ours(model: nn.Module, watch: Watch, stage: int) -> None:
    from trainwright import Trainer, TrainingArguments

    steps, world = watch.last + 1, torch.distributed.get_world_size()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, use_cpu=True, deepspeed={"zero_optimization": {"stage": stage}}, per_device_train_batch_size=BATCH,
            max_steps=steps, save_strategy="no", logging_steps=10**6, disable_tqdm=True, learning_rate=5e-5,
            average_tokens_across_devices=False,
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=tokens(steps * BATCH * world), data_collator=watch)
        trainer.train()
        trainer.deepspeed.destroy()


RUNNERS = {"bare": bare, "trainwright": ours}


def timed(asked: tuple[int, int]) -> dict[tuple[str, int], list[float]]:
    """(Runner, stage) -> milliseconds of a step in each round."""
    rounds, steps = asked
    seen: dict[tuple[str, int], list[float]] = {(name, stage): [] for stage in STAGES for name in RUNNERS}
    for _ in range(rounds):
        for (name, stage), found in seen.items():
            marks: list[float] = []
            mark: Any = lambda: marks.append(time.process_time())  # noqa: B023, E731 - called within this round
            RUNNERS[name](llama(128, 4), Watch(steps, mark, mark), stage)
            found.append((marks[1] - marks[0]) / steps * 1000)
            gc.collect()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    first, *_ = in_world(2, "bench.bench_zero:timed", (options.rounds, options.steps), longest=1200)
    wrong = 0
    for stage in STAGES:
        theirs, own = (statistics.median(first[name, stage]) for name in RUNNERS)
        wrong += own > LIMIT * theirs
        print(f"ZeRO {stage}: {own:.1f} ms a step, {theirs:.1f} by hand: {own / theirs:.3f} (at most {LIMIT})")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
