"""SIGKILL, where it hurts: between steps of real ranks, and at every single call that writes a checkpoint."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import resume_job
from trainer.resume_job import make_trainer, train_and_die, weights
from trainwright.checkpoint.store import CheckpointStore

JOBS: dict[str, dict[str, Any]] = {
    "at once": {"max_steps": 4, "save_total_limit": 1, "save_steps": 2},
    "while training goes on": {"max_steps": 4, "save_total_limit": 1, "save_steps": 2, "async_save": True},
}
EVERY = {"at once": 1, "while training goes on": 3}
"""The same calls on another thread: every third of them will do."""
LONGEST = 100
# Forks of a process that has imported everything and computed nothing: autograd does not survive a fork.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["trainer.resume_job", "trainwright.trainer.trainer", "trainwright.training.session"])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(output: Path, job: dict[str, Any], at_call: int) -> tuple[int, int]:
    """Exit code, and how many calls there were."""
    counted = FORKS.RawValue("i", 0)
    process = FORKS.Process(target=train_and_die, args=(str(output), job, at_call, counted))
    process.start()
    process.join(LONGEST)
    code = process.exitcode
    process.kill()
    process.join()
    assert code is not None, "the training hangs"
    return code, counted.value


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", JOBS)
def test_a_run_killed_at_any_write_of_a_checkpoint_goes_on_to_the_same_bits(kind: str, memory: Path) -> None:
    """What is found afterwards is whole, and going on from it ends with the same bits."""
    job = JOBS[kind]
    undisturbed = make_trainer(str(memory / "undisturbed"), **job)
    undisturbed.train()
    expected = weights(undisturbed)
    code, calls = run(memory / "counted", job, at_call=0)
    assert code == 0
    assert calls > 30
    steps_found = set()
    for call in range(1, calls + 1, EVERY[kind]):
        output = memory / f"killed-{call}"
        assert run(output, job, call)[0] == -signal.SIGKILL
        steps_found.add(check_goes_on(output, job, expected, f"killed at call {call} of {calls}"))
        shutil.rmtree(output)
    assert steps_found == {None, 2, 4}


def check_goes_on(output: Path, job: dict[str, Any], expected: dict[str, torch.Tensor], case: str) -> int | None:
    store = CheckpointStore(output)
    newest = store.newest()
    assert newest is None or not store.problems(newest, foreign=False), case
    resumed = make_trainer(str(output), **job)
    resumed.train(resume_from_checkpoint=newest is not None)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items()), case
    store.claim()
    assert "checkpoint-4" in os.listdir(output), case
    assert set(os.listdir(output)) <= {"checkpoint-2", "checkpoint-4"}, f"{case}: rubbish is left"
    return int(newest.name.rpartition("-")[2]) if newest is not None else None


def test_two_ranks_of_which_one_is_killed_go_on_to_the_same_bits(memory: Path) -> None:
    """Under torchrun, with data workers, accumulation and a round of batches that is filled up."""
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
        "ddp_find_unused_parameters": False,
    }
    undisturbed, killed = ({"output": str(memory / name), "arguments": arguments} for name in ("a", "b"))
    assert torchrun(undisturbed) == 0
    assert torchrun({**killed, "die_at": 4, "rank": 1}) != 0
    newest = CheckpointStore(memory / "b").newest()
    assert newest is not None
    assert newest.name in ("checkpoint-3", "checkpoint-4")
    assert sorted(path.name for path in newest.glob("*_[01].*")) == [
        "data_state_0.pt",
        "data_state_1.pt",
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    assert torchrun({**killed, "resume": True}) == 0
    expected, resumed = (torch.load(memory / name / "final.pt") for name in ("a", "b"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def torchrun(job: dict[str, Any]) -> int:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *launch, str(resume_job.__file__), json.dumps(job)]
    return subprocess.run(command, env=environment, timeout=LONGEST, check=False, capture_output=True).returncode
