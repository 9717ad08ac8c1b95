"""Libraries that train by transformers' Trainer: on ours they log the same, end with the same weights, and resume.

They stand in an environment of their own, which ``make compat`` builds. Here a few cases run; ``make compat`` runs all,
and prints the table.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compat.cases import CASES

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-compat" / "bin" / "python"
ALL = os.environ.get("TRAINWRIGHT_LIBRARIES") == "all"
TOLERANCE = 1e-6
KILLED_AT = 3
MEASURED = ("runtime", "per_second", "step_time")
OF_ONE_CALL = ("num_tokens", "train_loss")
"""What a resumed run counts from where it goes on: TRL's own counter, which no checkpoint has, and the mean over the
steps that a call of ``train`` makes."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="TRL and others are not here: `make compat` installs them")


def run(folder: Path, jobs: list[dict[str, Any]], *options: str) -> list[int]:
    """The exit codes of jobs, done one after the other in processes that are forked from one."""
    lines = "".join(f"{json.dumps({**job, 'out': str(folder / job['out'])})}\n" for job in jobs)
    done = subprocess.run(
        [str(PYTHON), "-m", "compat.runner", str(folder / "models"), *options],
        input=lines, capture_output=True, text=True, cwd=ROOT / "tests", check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "trainer_image"), "."])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    replaced = any(job.get("overlay") for job in jobs)
    assert done.stderr.count("Trainer replaces the one of transformers") == replaced, done.stderr
    return [int(line) for line in done.stdout.split()]


@dataclass(frozen=True)
class Run:
    """What a job left: its log without times, and its weights."""

    log: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    by_hand: float | None

    @staticmethod
    def of(folder: Path) -> Run:
        found = json.loads((folder / "log.json").read_text())
        log = [{name: value for name, value in entry.items() if not name.endswith(MEASURED)} for entry in found["log"]]
        return Run(log, torch.load(folder / "weights.pt"), found["by_hand"])

    def last(self, name: str) -> float:
        """The newest value that is logged under a name that ends so."""
        values = [value for entry in self.log for key, value in entry.items() if key.endswith(name)]
        return values[-1] if values else math.nan

    def first_loss(self) -> float:
        return self.log[0]["loss"]


def apart(one: Run, other: Run, but: tuple[str, ...] = ()) -> tuple[float, float]:
    """The largest difference in what was logged, and in the weights; infinite where other things are there."""
    if [entry.keys() for entry in one.log] != [entry.keys() for entry in other.log]:
        return math.inf, math.inf
    pairs = [
        (a[name], b[name]) for a, b in zip(one.log, other.log, strict=True) for name in a if not name.endswith(but)
    ]
    logged = max(abs(a - b) for a, b in pairs)
    if one.weights.keys() != other.weights.keys():
        return logged, math.inf
    return logged, max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


def verdict(theirs: Run, ours: Run, resumed: Run) -> tuple[list[str], list[str]]:
    """What is wrong, and the columns of the table."""
    logged, weights = apart(theirs, ours)
    wrong = []
    if ours.by_hand is None and not (logged <= TOLERANCE and weights <= TOLERANCE):
        wrong.append(f"logged {logged:.1e}, weights {weights:.1e} apart from transformers'")
    if ours.by_hand is not None and abs(ours.first_loss() - ours.by_hand) > TOLERANCE:
        wrong.append(f"the first loss is {ours.first_loss()}, by hand {ours.by_hand}")
    exact = apart(ours, resumed, but=OF_ONE_CALL) == (0.0, 0.0)
    if not exact:
        wrong.append(f"resumed: logged, weights {apart(ours, resumed, but=OF_ONE_CALL)} apart")
    figures = [f"{run.last('loss'):.6f}" for run in (theirs, ours)]
    if ours.by_hand is not None:
        figures = [f"{theirs.first_loss():.6f}", f"{ours.first_loss():.6f} (by hand {ours.by_hand:.6f})"]
    return wrong, [*figures, f"{logged:.0e}", f"{weights:.0e}", "bit for bit" if exact else "NO"]


def show(table: dict[str, list[str]]) -> None:
    head = ["library, case (loss)", "transformers", "trainwright", "logged", "weights", "resumed"]
    rows = [head, *([name, *columns] for name, columns in table.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


@pytest.mark.timeout(900)
def test_libraries_train_on_our_trainer_as_on_theirs_and_resume_bit_for_bit(tmp_path: Path):
    names = [name for name, case in CASES.items() if ALL or case.short]
    theirs = [{"case": name, "out": f"theirs/{number}"} for number, name in enumerate(names)]
    ours = [
        {"case": name, "out": f"ours/{number}{folder}", "overlay": True, **how}
        for number, name in enumerate(names)
        for folder, how in (("", {}), ("-killed", {"kill_at": KILLED_AT}), ("-killed", {"resume": True}))
    ]
    # In one process the overlay comes after the libraries, and leads their classes to our Trainer.
    parts = [(theirs, ()), (ours, ("--overlay",))] if ALL else [([*theirs, *ours], ())]
    codes = [code for jobs, options in parts for code in run(tmp_path, jobs, *options)]
    assert codes[: len(names)] == [0] * len(names)
    codes = codes[len(names) :]
    ends = dict(zip(names, (codes[at : at + 3] for at in range(0, len(codes), 3)), strict=True))
    wrong, table = {name: [f"exit codes {codes}"] for name, codes in ends.items() if codes != [0, -9, 0]}, {}
    for number, name in enumerate(names):
        if name not in wrong:
            found = [tmp_path / part for part in (f"theirs/{number}", f"ours/{number}", f"ours/{number}-killed")]
            problems, table[name] = verdict(*map(Run.of, found))
            wrong |= {name: problems} if problems else {}
    show(table)
    assert wrong == {}


BY_BATCH = ("eval_mean_token_accuracy", "eval_entropy", "total_flos")
"""TRL takes its means over the batches of all ranks at a time, larger ones than one process has; and smaller batches
of training have less padding to compute with."""


def sft_on(ranks: int, models: Path, out: Path) -> None:
    """Run the script on some ranks, which meet on a port that was free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT / "trainer_image"), "."])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "PYTHONPATH": paths}
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(PYTHON), "-m", "trainwright.overlay", "compat/sft_on_ranks.py", str(models), str(out)]
    running = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(subprocess.Popen(command, cwd=ROOT / "tests", env={**os.environ, **world, **offline, **own}))
    try:
        assert [process.wait(600) for process in running] == [0] * ranks
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.skipif(not ALL, reason="make compat runs it")
@pytest.mark.timeout(1300)
def test_sft_on_two_ranks_that_shard_the_model_logs_what_one_process_does(tmp_path: Path):
    made = [str(PYTHON), "-c", f"from pathlib import Path; from compat import tiny; tiny.make(Path({str(tmp_path)!r}))"]
    subprocess.run(made, cwd=ROOT / "tests", check=True)
    for ranks in (1, 2):
        sft_on(ranks, tmp_path, tmp_path / str(ranks))
    for kind, weights in (("whole", "model"), ("adapters", "adapter_model")):
        one, two = (json.loads((tmp_path / ranks / kind / "log.json").read_text()) for ranks in "12")
        assert any("trainwright" in name for name in two["lineage"])
        assert (one["sharded"], two["sharded"]) == (False, True)
        assert len(one["log"]) == len(two["log"]) == 9
        for a, b in zip(one["log"], two["log"], strict=True):
            kept = [name for name in a if not name.endswith(MEASURED) and name not in BY_BATCH]
            assert [b[name] for name in kept] == pytest.approx([a[name] for name in kept], rel=1e-6), kept
        a, b = (load_file(tmp_path / ranks / kind / "model" / f"{weights}.safetensors") for ranks in "12")
        assert a.keys() == b.keys()
        apart = max(float((a[name] - b[name]).abs().max()) for name in a)
        print(f"TRL SFT, {kind}: weights {apart:.1e} apart")
        assert apart < 1e-6
