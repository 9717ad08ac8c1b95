"""What the Trainer adds to FSDP 2: a bare loop with ``fully_shard`` on the same blocks beside it, in the same ranks.

    cd tests && OMP_NUM_THREADS=1 python -m bench.bench_fsdp [--rounds 5] [--steps 40]

Both do the same work: the same batches, forward, backward, clipping, AdamW, a linear schedule. Time is that of rank 0's
processor on 2 ranks, the median of interleaved rounds; on 4 ranks the collectives of a step are counted, with their
bytes; the peak of a rank is taken while it steps, beyond what it held before the model was made. There glibc gives back
what is freed at once: what it keeps by default depends on the order of allocations before, not on what is held.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed
from torch import nn

from trainer.world import in_world

TIME_LIMIT, PEAK_LIMIT = 1.05, 1.05
BATCH, LENGTH, WARM_UP = 4, 64, 5
COLLECTIVES = (
    "all_gather_single", "all_gather_into_tensor", "reduce_scatter_single", "reduce_scatter_tensor", "all_reduce",
)  # fmt: skip


def llama(hidden: int, layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=256, use_cache=False))


def tokens(samples: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 256, (samples, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


class Watch:
    """Called as batches are collated: marks the first batch after the warm-up, and the last."""

    def __init__(self, steps: int, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
        self.last, self.begin, self.end, self.calls = WARM_UP + steps, begin, end, 0

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if self.calls == WARM_UP:
            self.begin()
        if self.calls == self.last:
            self.end()
        self.calls += 1
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def bare(model: nn.Module, watch: Watch) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("dp_shard",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    steps = watch.last + 1
    data = tokens(steps * BATCH * world)
    loader = torch.utils.data.DataLoader(data[rank::world], BATCH, collate_fn=watch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    model.train()
    for batch in loader:
        model(**batch).loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norm.full_tensor()  # as every loop does that logs it
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def ours(model: nn.Module, watch: Watch) -> None:
    from trainwright import Trainer, TrainingArguments

    steps, world = watch.last + 1, torch.distributed.get_world_size()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, use_cpu=True, fsdp=True, per_device_train_batch_size=BATCH, max_steps=steps, save_strategy="no",
            logging_steps=10**6, disable_tqdm=True, learning_rate=5e-5, average_tokens_across_devices=False,
        )  # fmt: skip
        Trainer(model, args, train_dataset=tokens(steps * BATCH * world), data_collator=watch).train()


RUNNERS = {"bare": bare, "trainwright": ours}


def timed(asked: tuple[int, int]) -> dict[str, list[float]]:
    rounds, steps = asked
    seen: dict[str, list[float]] = {name: [] for name in RUNNERS}
    for _ in range(rounds):
        for name, run in RUNNERS.items():
            marks: list[float] = []
            mark = lambda: marks.append(time.process_time())  # noqa: B023, E731 - called within this round
            run(llama(128, 4), Watch(steps, mark, mark))
            seen[name].append((marks[1] - marks[0]) / steps * 1000)
            gc.collect()
    return seen


@contextmanager
def counting(seen: dict[str, list[int]]) -> Iterator[None]:
    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
            seen.setdefault(name, []).append(max(tensor.nbytes for tensor in tensors))
            return call(*args, **kwargs)

        return count

    with ExitStack() as stack:
        for name in COLLECTIVES:
            if (call := getattr(torch.distributed, name, None)) is not None:
                stack.enter_context(mock.patch.object(torch.distributed, name, counted(name, call)))
        yield


def collectives(_: None) -> dict[str, dict[str, list[int]]]:
    """Calls and bytes of each collective in 4 steps. The bare loop's norm is summed by DTensor, which is not seen."""
    found = {}
    for name, run in RUNNERS.items():
        seen: dict[str, list[int]] = {}
        stack = ExitStack()
        run(llama(64, 3), Watch(4, lambda: stack.enter_context(counting(seen)), stack.close))  # noqa: B023
        found[name] = {key: [len(sizes), sum(sizes)] for key, sizes in seen.items()}
    return found


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def peak(name: str) -> float:
    """MiB that a rank held at most while it stepped, beyond what it held before the model was made."""
    for warm_up in RUNNERS.values():  # both pay for the imports before
        warm_up(llama(64, 1), Watch(1, time.time, time.time))
    gc.collect()
    before = _status("VmRSS")
    peaks: list[float] = []
    run = RUNNERS[name]
    run(
        llama(512, 6),
        Watch(4, lambda: Path("/proc/self/clear_refs").write_text("5"), lambda: peaks.append(_status("VmHWM"))),
    )
    return peaks[0] - before


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    times = in_world(2, "bench.bench_fsdp:timed", (options.rounds, options.steps), longest=1200)[0]
    step = {name: statistics.median(seen) for name, seen in times.items()}
    ratio = step["trainwright"] / step["bare"]
    print(f"time of a step on 2 ranks: {json.dumps(step)} ms, ratio {ratio:.3f} (at most {TIME_LIMIT})")
    counted = in_world(4, "bench.bench_fsdp:collectives", None, longest=300)[0]
    print(f"collectives of 4 steps on 4 ranks, [calls, bytes]: {json.dumps(counted)}")
    os.environ |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    peaks = {name: max(in_world(2, "bench.bench_fsdp:peak", name, longest=600)) for name in RUNNERS}
    more = peaks["trainwright"] / peaks["bare"]
    print(f"peak of a rank: {json.dumps(peaks)} MiB, ratio {more:.3f} (at most {PEAK_LIMIT})")
    both = [{k: v for k, v in seen.items() if k != "all_reduce"} for seen in counted.values()]
    return int(ratio > TIME_LIMIT or more > PEAK_LIMIT or both[0] != both[1])


if __name__ == "__main__":
    sys.exit(main())
