"""Sharded models: no rank holds the whole, and what a save costs beside the disk's plain speed.

    cd tests && python -m bench.bench_shards [--ranks 4] [--layers 10] [--rounds 3] [--folder DIR]

A Llama of at least 1 GB starts, saves, resumes and saves its model on 4 ranks. The peak of each stage is that of the
memory that a rank has of its own (``RssAnon``; pages of files that it maps belong to the system), less what it has
after its imports. It may be its shards of parameters, gradients and optimizer, as far as the stage has them, one layer,
and 200 MB.

Then the ranks write and flush as many bytes as a checkpoint has, all at the same time, save a checkpoint, and save one
beside the training, in turn. All write new files; what is deleted is deleted between the measurements. Limits are held
against the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.world import in_world
from trainwright.checkpoint.staging import return_memory

WIDTH, INNER, VOCABULARY, LENGTH = 1536, 4096, 1024, 8
SPARE = 200e6
STAGES = {"start": 1, "save": 4, "save_model": 4, "resume": 3}
"""Stage -> how many times its shards a rank may hold: parameters, two moments of AdamW, and gradients."""
LEAST_SHARE, LARGEST_STALL = 0.8, 0.15
SAMPLE_SECONDS = 0.002


def made(layers: int) -> Any:
    """A Llama without values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainwright import deferred_weights

    torch.manual_seed(0)
    with deferred_weights():
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=12,
                vocab_size=VOCABULARY,
            )
        )  # fmt: skip


def trainer_of(folder: Path, layers: int, **options: Any) -> Any:
    from trainwright import Trainer, TrainingArguments

    defaults: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 1,
        "save_strategy": "steps", "save_steps": 1, "max_steps": 1, "fsdp": True, "logging_steps": 1000,
    }  # fmt: skip
    data = [{"input_ids": torch.arange(LENGTH), "labels": torch.arange(LENGTH)}] * 64
    return Trainer(made(layers), TrainingArguments(**(defaults | options)), train_dataset=data)


# -- memory


def own_memory() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def peak(into: dict[str, int], stage: str) -> Iterator[None]:
    """Note the largest memory of this process within the context."""
    highest, ended = own_memory(), threading.Event()

    def sample() -> None:
        nonlocal highest
        while not ended.wait(SAMPLE_SECONDS):
            highest = max(highest, own_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        into[stage] = max(highest, own_memory())


class Around:
    """Notes the peaks until training begins, and from its end; the steps between are the loop's."""

    def __init__(self, into: dict[str, int], first: str, last: str) -> None:
        from trainwright import TrainerCallback

        around = self

        class Callback(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                around.end()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                return_memory()  # what the step freed is the loop's
                around.begin(last)

        self.callback, self._into = Callback(), into
        self.begin(first)

    def begin(self, stage: str) -> None:
        self._stage = peak(self._into, stage)
        self._stage.__enter__()

    def end(self) -> None:
        self._stage.__exit__(None, None, None)


def peaks(argument: tuple[Path, int, bool]) -> dict[str, float]:
    """The peaks of this rank's stages, beyond its imports, and what it may have."""
    folder, layers, resumes = argument
    trainer_of(folder / "warm", 1, fsdp=False, save_strategy="no").train()  # imports, pools, the allocator
    gc.collect()
    return_memory()
    before, found = own_memory(), {}
    around = Around(found, "resume" if resumes else "start", "save")
    options = {"max_steps": 2, "save_strategy": "no"} if resumes else {}
    trainer = trainer_of(folder / "run", layers, **options)
    trainer.add_callback(around.callback)
    trainer.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-1") if resumes else None)
    around.end()
    if resumes:
        del found["save"]
    else:
        with peak(found, "save_model"):
            trainer.save_model(str(folder / "model"))
    return {**limits(trainer), **{name: value - before for name, value in found.items()}}


def limits(trainer: Any) -> dict[str, float]:
    whole = sum(parameter.nbytes for parameter in trainer.model.parameters())
    shard = sum(parameter._local_tensor.nbytes for parameter in trainer.model.parameters())
    layer = sum(parameter.nbytes for parameter in trainer.model.model.layers[0].parameters())
    return {"whole": whole, "shard": shard, "spare": layer + SPARE}


def consolidation(folder: Path) -> tuple[float, float]:
    """The peak of ``trainwright consolidate`` in this process, and its limit."""
    import transformers  # noqa: F401

    from trainwright_operator.cli import main

    found: dict[str, int] = {}
    before = own_memory()
    with peak(found, "consolidate"):
        assert main(["consolidate", str(folder / "run" / "checkpoint-1"), str(folder / "consolidated")]) == 0
    layer = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    return found["consolidate"] - before, layer + SPARE


# -- speed


def speeds(argument: tuple[Path, int, int]) -> dict[str, list[float]]:
    """Seconds of each round: plain writes, a save, the stall of a save beside the training."""
    from trainwright.checkpoint.background import BackgroundWriter
    from trainwright.checkpoint.snapshot import snapshot
    from trainwright.training.session import make_background

    folder, layers, rounds = argument
    trainer = trainer_of(folder / "speed", layers, save_strategy="no")
    trainer.train()
    store = trainer.checkpoints
    store.write(1, snapshot(trainer, store.is_leader).later)
    mine = sum(path.stat().st_size for path in store.path(1).rglob(f"__{store.ranks.rank}_*"))
    content = memoryview(os.urandom(1 << 20) * (mine >> 20))
    trainer.async_save = True
    background: BackgroundWriter = make_background(trainer)
    background.start(2, lambda: None, lambda: None)
    background.settle()
    store.rotate(1)
    found: dict[str, list[float]] = {"plain": [], "save": [], "stall": []}

    def timed(name: str, do: Callable[[], Any]) -> None:
        os.sync()
        store.ranks.barrier()
        start = time.perf_counter()
        do()
        store.ranks.barrier()
        found[name].append(time.perf_counter() - start)

    plain = folder / f"plain-{store.ranks.rank}"
    for step in range(3, 3 + 2 * rounds, 2):
        timed("plain", lambda: plain_write(content, plain))
        plain.unlink()
        timed("save", lambda step=step: store.write(step, in_turn(snapshot(trainer, store.is_leader))))
        timed("stall", lambda step=step: background.start(step + 1, lambda: None, lambda: None))
        background.settle()
        store.rotate(1)
    return found


def in_turn(pieces: Any) -> list[Any]:
    return [*pieces.later, *pieces.at_once]


def plain_write(content: memoryview, path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
        os.fsync(file.fileno())


# -- both


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write; a disk, not memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        good = told_memory(folder, options.ranks, options.layers)
        shutil.rmtree(folder)
        folder.mkdir()
        seconds = in_world(options.ranks, "bench.bench_shards:speeds", (folder, options.layers, options.rounds), 1800)[
            0
        ]
    return int(not (told_speed(seconds) and good))


def told_memory(folder: Path, ranks: int, layers: int) -> bool:
    worlds = [in_world(ranks, "bench.bench_shards:peaks", (folder, layers, again), 1800) for again in (False, True)]
    found = [{**one, **other} for one, other in zip(*worlds, strict=True)]
    ((single, most),) = in_world(1, "bench.bench_shards:consolidation", folder, 1800)
    print(f"the whole model has {found[0]['whole'] / 1e6:.0f} MB; peaks of the ranks in MB, and what each may have")
    good = single <= most
    for stage, shards in STAGES.items():
        limit = shards * found[0]["shard"] + found[0]["spare"]
        print(f"{stage:12}" + "".join(f"{rank[stage] / 1e6:9.0f}" for rank in found) + f"  at most {limit / 1e6:.0f}")
        good = good and all(rank[stage] <= limit for rank in found)
    print(f"{'consolidate':12}{single / 1e6:9.0f}" + " " * 9 * (ranks - 1) + f"  at most {most / 1e6:.0f}")
    return good


def told_speed(seconds: dict[str, list[float]]) -> bool:
    shares = [plain / save for plain, save in zip(seconds["plain"], seconds["save"], strict=True)]
    stalls = [stall / save for stall, save in zip(seconds["stall"], seconds["save"], strict=True)]
    share, stall = statistics.median(shares), statistics.median(stalls)
    for name, values in seconds.items():
        print(f"{name:12}" + " ".join(f"{value:8.2f}" for value in values) + " s")
    print(f"a save is {share:.2f} of the plain speed (at least {LEAST_SHARE})")
    print(f"beside the training it stalls {stall:.2f} of that (at most {LARGEST_STALL})")
    return share >= LEAST_SHARE and stall <= LARGEST_STALL


if __name__ == "__main__":
    sys.exit(main())
