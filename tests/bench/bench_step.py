"""What the Trainer adds to a step: a bare PyTorch loop, Trainwright and the Hugging Face Trainer in one process.

    cd tests && OMP_NUM_THREADS=1 python -m bench.bench_step [--rounds 7] [--steps 500] [--case mlp ...]

All do the same work: the same samples through the same collator, forward, backward, clipping, AdamW, a linear schedule.
What is measured is the time of one processor, so that a busy machine changes little; rounds are interleaved, and the
median of each runner is taken. With several processes (gloo, DistributedDataParallel) it is that of the first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainwright.launch.entry import finish

WARM_UP = 100


class MLP(nn.Module):
    """9,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits = self.layers(x)
        return (nn.functional.cross_entropy(logits, labels), logits) if labels is not None else (logits,)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 4, "n_embd": 64, "n_head": 4, "vocab_size": 256, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def vectors() -> list[dict[str, torch.Tensor]]:
    x, labels = torch.randn(4096, 64), torch.randint(0, 10, (4096,))
    return [{"x": x[i], "labels": labels[i]} for i in range(len(x))]


def tokens() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 256, (1024, 64))
    return [{"input_ids": row, "labels": row} for row in ids]


@dataclass(frozen=True)
class Case:
    make_model: Callable[[], nn.Module]
    make_data: Callable[[], list[dict[str, torch.Tensor]]]
    batch_size: int
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    limit: float = 1.10
    processes: int = 1

    @property
    def accumulation(self) -> int:
        return self.arguments.get("gradient_accumulation_steps", 1)


ACCUMULATED = {"gradient_accumulation_steps": 4}
CASES = {
    "mlp": Case(MLP, vectors, 32),
    "mlp, accumulation 4": Case(MLP, vectors, 32, ACCUMULATED),
    "mlp, bf16": Case(MLP, vectors, 32, {"bf16": True}),
    "mlp, 2 processes": Case(MLP, vectors, 32, processes=2),
    "mlp, 2 proc., acc. 4": Case(MLP, vectors, 32, ACCUMULATED, processes=2),
    "gpt2, 4 layers": Case(gpt2, tokens, 4, steps=60, limit=1.02),
    "gpt2, bf16": Case(gpt2, tokens, 4, {"bf16": True}, steps=60, limit=1.02),
    "gpt2, 2 processes": Case(gpt2, tokens, 4, steps=60, limit=1.02, processes=2),
}


class Clock:
    """A collator that notes when the first batch after the warm-up and the last batch are asked for."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.calls = first, last, 0
        self.began = self.ended = 0.0

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if self.calls == self.first:
            self.began = time.process_time()
        if self.calls == self.last:
            self.ended = time.process_time()
        self.calls += 1
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def bare(case: Case, data: list[Any], clock: Clock, steps: int, folder: str) -> None:
    model = case.make_model()
    model.train()
    sampler: Any = torch.utils.data.RandomSampler(data)
    if case.processes > 1:
        model = nn.parallel.DistributedDataParallel(model)
        sampler = torch.utils.data.DistributedSampler(data)
    loader = torch.utils.data.DataLoader(data, case.batch_size, sampler=sampler, collate_fn=clock)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    parameters, bf16 = list(model.parameters()), case.arguments.get("bf16", False)
    done = micro = 0
    while done < steps:
        for batch in loader:
            micro += 1
            is_last = micro % case.accumulation == 0
            with nullcontext() if is_last or case.processes == 1 else model.no_sync():
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    outputs = model(**batch)
                loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
                (loss / case.accumulation).backward()
            if not is_last:
                continue
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break


def arguments(case: Case, steps: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": case.batch_size, "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 10**6,
        "ddp_find_unused_parameters": False, **case.arguments,
    }  # fmt: skip


def trainwright(
    case: Case, data: list[Any], clock: Clock, steps: int, folder: str, on_anomaly: str | None = None
) -> None:
    from trainwright import PrinterCallback, Trainer, TrainingArguments

    args = TrainingArguments(**arguments(case, steps, folder))
    trainer = Trainer(case.make_model(), args, data_collator=clock, train_dataset=data)
    trainer.on_anomaly = on_anomaly
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def watching(case: Case, data: list[Any], clock: Clock, steps: int, folder: str) -> None:
    """Trainwright with ``onAnomaly: Skip``."""
    trainwright(case, data, clock, steps, folder, on_anomaly="Skip")


def hugging_face(case: Case, data: list[Any], clock: Clock, steps: int, folder: str) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    args = TrainingArguments(**arguments(case, steps, folder))
    trainer = Trainer(case.make_model(), args, data_collator=clock, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


RUNNERS = {"bare loop": bare, "trainwright": trainwright, "hugging face": hugging_face, "  onAnomaly": watching}


def seconds_per_step(run: Callable[..., None], case: Case, data: list[Any], steps: int, folder: str) -> float:
    warm_up = min(WARM_UP, steps)
    clock = Clock(warm_up * case.accumulation, (warm_up + steps - 1) * case.accumulation)
    gc.collect()
    run(case, data, clock, warm_up + steps, folder)
    return (clock.ended - clock.began) / (steps - 1)


def measure(case: Case, rounds: int, steps: int) -> dict[str, list[float]]:
    data = case.make_data()
    times: dict[str, list[float]] = {name: [] for name in RUNNERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, run in RUNNERS.items():
                taken = seconds_per_step(run, case, data, steps, folder)
                if number > 0:  # the first round imports and fills caches
                    times[name].append(taken)
    return times


def measure_in_world(name: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """The same in several processes, of which the first tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = CASES[name].processes
    module = [sys.executable, "-m", "bench.bench_step"]  # by its path, the folder `operator` would hide Python's own
    command = [*module, "--case", name, "--rounds", str(rounds), "--steps", str(steps), "--as-rank"]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            env={**os.environ, **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}},
        )
        for rank in range(size)
    ]
    told, _ = ranks[0].communicate()
    if any(rank.wait() for rank in ranks):
        raise SystemExit(f"{name}: a process failed")
    times: dict[str, list[float]] = json.loads(told.splitlines()[-1])
    return times


def measure_as_rank(name: str, rounds: int, steps: int) -> None:
    torch.distributed.init_process_group("gloo")
    times = measure(CASES[name], rounds, steps)
    torch.distributed.barrier()
    print(json.dumps(times), flush=True)
    finish()


def show(name: str, times: dict[str, list[float]]) -> None:
    base, limit = statistics.median(times["bare loop"]), CASES[name].limit
    for runner, taken in times.items():
        pairs = [a / b for a, b in zip(taken, times["bare loop"], strict=True)]
        ratio, spread = statistics.median(taken) / base, f"{min(pairs):.2f} .. {max(pairs):.2f}"
        verdict = ("within" if ratio <= limit else "OVER") + f" {limit:.2f}" if runner == "trainwright" else ""
        median = statistics.median(taken) * 1e6
        print(f"{name:<22}{runner:<14}{median:>10.0f}{ratio:>8.3f}  {verdict:<12} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.as_rank:
        measure_as_rank(options.case[0], options.rounds, options.steps)
    print(f"{'case':<22}{'':<14}{'us a step':>10}{'ratio':>8}  {'limit':<12} ratios of the rounds")
    for name in options.case or CASES:
        case = CASES[name]
        steps = case.steps or options.steps
        several = case.processes > 1
        show(name, measure_in_world(name, options.rounds, steps) if several else measure(case, options.rounds, steps))


if __name__ == "__main__":
    main()
