"""What an evaluation costs: 10,000 samples with metrics, beside a bare loop and the Hugging Face Trainer.

    cd tests && OMP_NUM_THREADS=1 python -m bench.bench_eval [--rounds 5] [--case mlp ...]

Each measurement is a process of its own, as the peak of its memory would else be that of whoever was hungriest before
it. All collect every logit and label and compute the same accuracy. Time is that of one processor; both Trainers have
judged the set once before it is taken, and so has the bare loop.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.bench_step import MLP, gpt2

LIMIT = 1.10
SAMPLES = 10_000
BATCH = 64
MOMENT = 1.0
"""Seconds of the processor."""


def classes() -> list[dict[str, torch.Tensor]]:
    x, labels = torch.randn(SAMPLES, 64), torch.randint(0, 10, (SAMPLES,))
    return [{"x": x[i], "labels": labels[i]} for i in range(SAMPLES)]


def texts() -> list[dict[str, torch.Tensor]]:
    """Short, so that the 10,000 logits over a vocabulary of 256 are 160 MB."""
    ids = torch.randint(0, 256, (SAMPLES, 16))
    return [{"input_ids": row, "labels": row} for row in ids]


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {"mlp": (MLP, classes), "gpt2": (gpt2, texts)}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def accuracy(prediction: Any) -> dict[str, float]:
    logits, labels = prediction
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def bare(model: Any, data: list[Any], folder: str) -> Callable[[], dict[str, float]]:
    loader = torch.utils.data.DataLoader(data, BATCH, collate_fn=collate)

    def judge() -> dict[str, float]:
        model.eval()
        losses, logits, labels = [], [], []
        with torch.no_grad():
            for batch in loader:
                outputs = model(**batch)
                loss, scores = (outputs["loss"], outputs["logits"]) if isinstance(outputs, dict) else outputs
                losses.append(loss.repeat(len(scores)))
                logits.append(scores)
                labels.append(batch["labels"])
        metrics = accuracy((torch.cat(logits).numpy(), torch.cat(labels).numpy()))
        return {"eval_loss": torch.cat(losses).mean().item(), "eval_accuracy": metrics["accuracy"]}

    return judge


def of_a_trainer(package: str) -> Callable[..., Callable[[], dict[str, float]]]:
    def make(model: Any, data: list[Any], folder: str) -> Callable[[], dict[str, float]]:
        library = __import__(package)
        args = library.TrainingArguments(
            output_dir=folder, per_device_eval_batch_size=BATCH, use_cpu=True, report_to="none", disable_tqdm=True
        )
        trainer = library.Trainer(model, args, data_collator=collate, eval_dataset=data, compute_metrics=accuracy)
        trainer.remove_callback(library.PrinterCallback)
        return trainer.evaluate

    return make


RUNNERS = {"bare loop": bare, "trainwright": of_a_trainer("trainwright"), "hugging face": of_a_trainer("transformers")}


def measure_here(case: str, runner: str) -> None:
    """Print seconds, the peak of memory in MB, and what was found."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make_model, make_data = CASES[case]
    import transformers  # noqa: F401  # by all three, so that the peaks differ by what the evaluation takes

    with tempfile.TemporaryDirectory() as folder:
        judge = RUNNERS[runner](make_model(), make_data(), folder)
        judge()
        seconds, found = timed(judge)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, peak, found["eval_loss"], found["eval_accuracy"]]))


def timed(judge: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    """The median of as many runs as fill a moment: one of 15 ms is at the mercy of what else the machine does."""
    taken: list[float] = []
    while not taken or sum(taken) < MOMENT:
        start = time.process_time()
        found = judge()
        taken.append(time.process_time() - start)
    return statistics.median(taken), found


def measure(case: str, runner: str) -> list[float]:
    command = [sys.executable, "-m", "bench.bench_eval", "--measure", case, runner]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: list[float] = json.loads(told.splitlines()[-1])
    return result


def show(case: str, seen: dict[str, list[list[float]]]) -> None:
    assert len({round(row[3], 6) for rows in seen.values() for row in rows}) == 1, "accuracies differ"
    trainers = [row for runner, rows in seen.items() if runner != "bare loop" for row in rows]
    # both count the labels for a causal model, which predicts one fewer of each text than a bare loop averages over
    assert len({round(row[2], 5) for row in trainers}) == 1, "losses differ"
    base = [row[0] for row in seen["bare loop"]]
    peaks = {runner: statistics.median(row[1] for row in rows) for runner, rows in seen.items()}
    for runner, rows in seen.items():
        seconds = [row[0] for row in rows]
        ratio = statistics.median(mine / bare for mine, bare in zip(seconds, base, strict=True))
        verdict = ""
        if runner == "trainwright":
            less = peaks[runner] <= peaks["hugging face"]
            verdict = (
                f"time {'within' if ratio <= LIMIT else 'OVER'} {LIMIT:.2f}, memory {'not ' * less}above hugging face's"
            )
        print(f"{case:<6}{runner:<14}{statistics.median(seconds):>9.3f}{ratio:>8.3f}{peaks[runner]:>10.0f}  {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "RUNNER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_here(*options.measure)
        return
    print(f"{'case':<6}{'':<14}{'CPU s':>9}{'ratio':>8}{'peak MB':>10}  limits")
    for case in options.case or CASES:
        seen: dict[str, list[list[float]]] = {runner: [] for runner in RUNNERS}
        for _ in range(options.rounds):
            for runner in RUNNERS:
                seen[runner].append(measure(case, runner))
        show(case, seen)


if __name__ == "__main__":
    main()
