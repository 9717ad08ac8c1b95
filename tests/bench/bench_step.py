"""What the Trainer adds to a step: a bare PyTorch loop, Trainwright and the Hugging Face Trainer in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_step.py [--rounds 7] [--steps 500] [--case mlp ...]

All do the same work: the same samples through the same collator, forward, backward, clipping, AdamW, a linear schedule.
What is measured is the time of one processor, so that a busy machine changes little; rounds are interleaved, and the
median of each runner is taken.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

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

    @property
    def accumulation(self) -> int:
        return self.arguments.get("gradient_accumulation_steps", 1)


CASES = {
    "mlp": Case(MLP, vectors, 32),
    "mlp, accumulation 4": Case(MLP, vectors, 32, {"gradient_accumulation_steps": 4}),
    "mlp, bf16": Case(MLP, vectors, 32, {"bf16": True}),
    "gpt2, 4 layers": Case(gpt2, tokens, 4, steps=60),
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
    loader = torch.utils.data.DataLoader(data, case.batch_size, shuffle=True, collate_fn=clock)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    parameters, bf16 = list(model.parameters()), case.arguments.get("bf16", False)
    done = micro = 0
    while done < steps:
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(**batch)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            (loss / case.accumulation).backward()
            micro += 1
            if micro % case.accumulation:
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
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 10**6, **case.arguments,
    }  # fmt: skip


def trainwright(case: Case, data: list[Any], clock: Clock, steps: int, folder: str) -> None:
    from trainwright import PrinterCallback, Trainer, TrainingArguments

    args = TrainingArguments(**arguments(case, steps, folder))
    trainer = Trainer(case.make_model(), args, data_collator=clock, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def hugging_face(case: Case, data: list[Any], clock: Clock, steps: int, folder: str) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    args = TrainingArguments(**arguments(case, steps, folder))
    trainer = Trainer(case.make_model(), args, data_collator=clock, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


RUNNERS = {"bare loop": bare, "trainwright": trainwright, "hugging face": hugging_face}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--case", action="append", choices=CASES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<22}{'':<14}{'us a step':>10}{'ratio':>8}   ratios of the rounds")
    for name in options.case or CASES:
        case = CASES[name]
        times = measure(case, options.rounds, case.steps or options.steps)
        base = statistics.median(times["bare loop"])
        for runner, taken in times.items():
            pairs = [a / b for a, b in zip(taken, times["bare loop"], strict=True)]
            median, spread = statistics.median(taken), f"{min(pairs):.2f} .. {max(pairs):.2f}"
            print(f"{name:<22}{runner:<14}{median * 1e6:>10.0f}{median / base:>8.2f}   {spread}", flush=True)


if __name__ == "__main__":
    main()
