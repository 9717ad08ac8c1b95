"""What a checkpoint costs: bytes a second beside writing and flushing the same bytes, and the stall of a step.

    cd tests && python -m bench.bench_save [--rounds 7] [--megabytes 576] [--folder DIR]

Each round, in turn: the bytes of a checkpoint are written by one `write` after the other and flushed; Trainwright saves
the model and its AdamW at once; then while training goes on, where the time counts that the training thread stands
still; and the Hugging Face Trainer saves, which flushes nothing. Limits are held against the median of the rounds'
ratios, as flushing waits for the disk, and a disk is not always equally fast; beside them stand the shortest times.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

LEAST_SHARE = 0.8
"""Of the speed of writing and flushing."""
LARGEST_STALL = 0.15
"""Of the time that saving at once takes."""
WIDTH = 2048


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        for layer in self.layers:
            x = layer(x)
        return (nn.functional.cross_entropy(x, labels), x) if labels is not None else (x,)


def trained(kind: Any, arguments: Any, layers: int, folder: str) -> Any:
    """A Trainer after one step, so that its optimizer has its state."""
    data = [{"x": torch.randn(WIDTH), "labels": torch.tensor(1)}] * 4
    args = arguments(
        output_dir=folder, max_steps=1, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = kind(Layers(layers), args, train_dataset=data)
    trainer.train()
    return trainer


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plain_write(content: memoryview, folder: Path) -> None:
    with open(folder / "plain", "wb", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
        os.fsync(file.fileno())


class Savers:
    """The four ways; each is called with the number of the round and returns when its bytes are where they belong."""

    def __init__(self, layers: int, folder: Path) -> None:
        import transformers

        import trainwright
        from trainwright.checkpoint.background import BackgroundWriter
        from trainwright.training.session import make_background

        self.folder = folder
        self.ours = trained(trainwright.Trainer, trainwright.TrainingArguments, layers, str(folder / "ours"))
        self.theirs = trained(transformers.Trainer, transformers.TrainingArguments, layers, str(folder / "theirs"))
        self.at_once(0)
        self.content = memoryview(os.urandom(1 << 20) * (bytes_in(folder / "ours" / "checkpoint-0") >> 20))
        self.ours.async_save = True
        self.writer: BackgroundWriter = make_background(self.ours)
        for boundary in (1, 2):  # as the loop does before its first two steps
            self.writer.is_due(boundary)

    def at_once(self, number: int) -> None:
        self.ours._background = None
        self.ours.state.global_step = number
        self.ours._save_checkpoint(self.ours.model, trial=None)

    def plain(self, number: int) -> None:
        plain_write(self.content, self.folder)

    def aside(self, number: int) -> None:
        self.ours._background = self.writer
        self.ours.state.global_step = number
        self.ours._save_checkpoint(self.ours.model, trial=None)

    def hugging_face(self, number: int) -> None:
        self.theirs.state.global_step = number
        self.theirs._save_checkpoint(self.theirs.model, trial=None)

    def tidy(self) -> None:
        self.writer.settle()
        for name in ("ours", "theirs"):
            for checkpoint in (self.folder / name).glob("checkpoint-*"):
                shutil.rmtree(checkpoint)


def timed(act: Callable[[int], None], number: int) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    act(number)
    return time.perf_counter() - start, time.process_time() - cpu


def measure(savers: Savers, rounds: int) -> dict[str, list[tuple[float, float]]]:
    ways = {
        "write and flush": savers.plain,
        "at once": savers.at_once,
        "while training goes on": savers.aside,
        "hugging face (no flush)": savers.hugging_face,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(1, rounds + 2):
        for name, act in ways.items():
            taken = timed(act, number)
            savers.tidy()
            os.sync()
            if number > 1:  # the first round touches the memory
                times[name].append(taken)
    return times


def ratio(times: dict[str, list[tuple[float, float]]], of: str, to: str) -> tuple[float, float]:
    """The median of the rounds' ratios of two ways' wall times; and the ratio of their shortest ones."""
    one, other = ([taken for taken, _ in times[way]] for way in (of, to))
    return statistics.median(a / b for a, b in zip(one, other, strict=True)), min(one) / min(other)


def verdict(is_within: bool, limit: str) -> str:
    return f"{'within' if is_within else 'OVER'} {limit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=576, help="of a checkpoint: weights and AdamW in fp32")
    parser.add_argument("--folder", help="on the disk to measure; the system's folder for temporary files by default")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    layers = max(1, options.megabytes * 2**20 // (3 * 4 * WIDTH * WIDTH))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        savers = Savers(layers, Path(name))
        size = len(savers.content)
        times = measure(savers, options.rounds)
    shortest = {way: min(taken for taken, _ in samples) for way, samples in times.items()}
    share, least = ratio(times, "write and flush", "at once")
    stall, briefest = ratio(times, "while training goes on", "at once")
    said = {
        "at once": verdict(
            share >= LEAST_SHARE,
            f"at least {LEAST_SHARE} of the speed of writing and flushing: {share:.2f} (of the shortest {least:.2f})",
        ),
        "while training goes on": verdict(
            stall <= LARGEST_STALL,
            f"a stall of {LARGEST_STALL} of at once: {stall:.3f} (of the shortest {briefest:.3f})",
        ),
    }
    print(f"a checkpoint of {size >> 20} MiB")
    print(f"{'':<25}{'shortest':>9}{'median':>9}{'CPU s':>8}{'MiB/s':>8}")
    for way, samples in times.items():
        median, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        rate = "" if way == "while training goes on" else f"{(size >> 20) / shortest[way]:.0f}"
        print(f"{way:<25}{shortest[way]:>9.3f}{median:>9.3f}{cpu:>8.3f}{rate:>8}  {said.get(way, '')}")


if __name__ == "__main__":
    main()
