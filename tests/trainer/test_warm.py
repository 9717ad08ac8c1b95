"""Ranks forked from a process that has imported once: they are like new processes, or else they spawn."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from datasets import config

from trainer.gangs import Gang
from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, ResolvedJob
from trainwright.declarative.job import first_rank_alone
from trainwright.launch import warm
from trainwright.launch.warm import NotWarm, RankStart, WarmParent, forks

TESTS = Path(__file__).parent.parent


def test_forked_ranks_use_every_library_and_none_stalls():
    """Thousands of forks are a target of their own: make warm."""
    paths = [str(TESTS), str(TESTS.parent / "trainer_image"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "warm", "4"]
    done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"forks": 4, "stalled": 0, "failed": 0' in done.stdout


SCRIPT = """
import json, numpy, os, random, sys, time
rank, round = int(os.environ["RANK"]), int(os.environ["TRAINWRIGHT_ROUND"])
warm = "transformers" in sys.modules
json.dump([warm, sys.argv[1:], __name__, os.getppid(), os.getsid(0) == os.getpid(), random.random(),
           numpy.random.rand(), os.environ.get("OPENBLAS_NUM_THREADS")], open(f"facts-{rank}-{round}.tmp", "w"))
os.rename(f"facts-{rank}-{round}.tmp", f"facts-{rank}-{round}")
print("hello", flush=True)
while len([name for name in os.listdir() if name.startswith("facts") and name.endswith(f"-{round}")]) < 2:
    time.sleep(0.02)
sys.exit(7 if rank == 1 and round == 1 else time.sleep(300) if round == 1 else 0)
"""


def test_a_script_that_asks_for_it_is_forked_in_every_round(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    script = {"path": str(tmp_path / "script.py"), "args": ["--lr", "0.1"]}
    with Gang(tmp_path, script=script, per_node=2, start_method="Fork") as gang:
        gang.environment = {"TRAINWRIGHT_RESTARTS_LEFT": "1"}
        assert gang.run() == [0], gang.log()
        launcher = gang.launchers[0].pid
        assert [end["code"] for end in gang.word().rounds] == [7]
    facts = [json.loads((tmp_path / f"facts-{rank}-{round}").read_text()) for rank in (0, 1) for round in (1, 2)]
    numbers = {each.pop(position) for each in facts for position in (6, 5)}
    assert facts == [[True, ["--lr", "0.1"], "__main__", launcher, True, None]] * 4
    assert len(numbers) == 8  # each rank draws its own
    assert gang.log().count("[rank 1] hello") == 2
    assert "spawned" not in gang.log()


KILLER = """
import os, signal, sys, time
from pathlib import Path
rank, round, launcher = int(os.environ["RANK"]), os.environ["TRAINWRIGHT_ROUND"], os.getppid()
Path(f"pid-{rank}-{round}").write_text(str(os.getpid()))
while len(ranks := [path.read_text() for path in Path().glob(f"pid-*-{round}")]) < 2 or not all(ranks):
    time.sleep(0.02)
print("warm" if "transformers" in sys.modules else "new", flush=True)
if round == "1" and rank == 1:
    (parent,) = set(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()) - set(ranks)
    os.kill(int(parent), signal.SIGKILL)
    sys.exit(7)
time.sleep(300 if round == "1" else 0)
"""


def test_ranks_are_spawned_when_the_process_to_fork_them_from_was_killed(tmp_path):
    with Gang(tmp_path, KILLER, per_node=2, start_method="Fork") as gang:
        gang.environment = {"TRAINWRIGHT_RESTARTS_LEFT": "1"}
        assert gang.run() == [0], gang.log()
    lines = sorted(line for line in gang.log().splitlines() if line.startswith("[rank"))  # no warning either
    assert lines == [f"[rank {rank}] {kind}" for rank in (0, 1) for kind in ("new", "warm")]
    assert "ranks are spawned, not forked: the process to fork them from has ended" in gang.log()


@pytest.fixture
def quick_parent(tmp_path):
    """One that imports nothing; its ranks leave a file."""
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "preload.py").write_text("def preload(): ...")
    (tmp_path / "quick" / "__main__.py").write_text("import os; open(os.environ['NAME'], 'w').close()")
    paths = os.pathsep.join([str(tmp_path), str(TESTS.parent / "trainer_image")])
    parent = WarmParent({**os.environ, "PYTHONPATH": paths}, "quick")
    parent.wait()
    assert parent.usable
    yield parent
    parent.close()
    assert parent.process.returncode is not None


def test_no_rank_begins_before_all_are_forked(quick_parent, tmp_path):
    first, broken = RankStart({"NAME": str(tmp_path / "ran")}, ["", ""]), RankStart(None, [])
    with pytest.raises(NotWarm, match="has ended"):
        quick_parent.fork(["-u", "-m", "quick"], os.environ, {0: first, 1: broken})
    time.sleep(0.3)
    assert not (tmp_path / "ran").exists()


def test_a_parent_that_stands_still_is_given_up(quick_parent, tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "FORK_SECONDS", 0.3)
    os.kill(quick_parent.process.pid, signal.SIGSTOP)
    with pytest.raises(NotWarm, match="does not answer"):
        quick_parent.fork(["-u", "-m", "quick"], os.environ, {0: RankStart({"NAME": str(tmp_path / "ran")}, ["", ""])})
    assert not quick_parent.usable


IMPORTS_ANEW = """
import os, sys
from trainwright.launch.warm_parent import prepare
prepare("trainwright.declarative")
before = {*sys.modules}
from trainwright.declarative.__main__ import main
main()
print("new:", *sorted({*sys.modules} - before - {"trainwright.declarative.__main__"}))
sys.stdout.flush()
os._exit(0)
"""


def test_a_forked_rank_finds_all_modules_that_training_needs(tmp_path):
    """Each one that is missing costs every rank the time of its import, at every restart."""
    job = ResolvedJob("warm", "default", "uid", 1, 1, 1, task="CausalLM", **DECLARED)
    (tmp_path / "job.json").write_text(job.to_json())
    environment = {
        **os.environ, "PYTHONPATH": str(TESTS.parent / "trainer_image"), "HF_HOME": str(tmp_path / "cache"),
        ENV_JOB_FILE: str(tmp_path / "job.json"), ENV_OUTPUT_DIR: str(tmp_path / "output"),
    }  # fmt: skip
    command = [sys.executable, "-c", IMPORTS_ANEW]
    done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("new:")]
    assert len(line.split()) <= 5, line  # releases of the libraries differ


def test_ranks_of_a_node_wait_for_the_one_that_prepares_and_then_go_on_together(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path))
    together, alone, ends = threading.Barrier(3), threading.Event(), []

    def rank():
        with first_rank_alone({"source": "rows.txt"}):
            if not alone.is_set():
                alone.set()
                time.sleep(0.2)
                ends.append("first")
            else:
                together.wait(10)
                ends.append("other")

    threads = [threading.Thread(target=rank) for _ in range(4)]
    for thread in threads:
        thread.start()
        alone.wait()
    for thread in threads:
        thread.join()
    assert ends == ["first", "other", "other", "other"]


DECLARED = {
    "model": {"source": "gpt2", "fromConfig": {"n_layer": 1, "n_embd": 16, "n_head": 2}, "tokenizer": "bytes"},
    "dataset": {"source": "stdlib://a*.py", "blockSize": 32},
    "training_arguments": {"max_steps": 1, "per_device_train_batch_size": 1, "use_cpu": True},
}
JOB = ResolvedJob("job", "default", "uid", 1, 1, 1)
CASES = {
    # name: (fields of the job, environment, whether it forks; None: it asks for what it cannot have)
    "declarative on CPU": ({}, {"TRAINWRIGHT_VENDOR": "cpu"}, True),
    "told to spawn": ({"start_method": "Spawn"}, {}, False),
    "a script": ({"script": {"inline": ""}}, {}, False),
    "a script that asks for it": ({"script": {"inline": ""}, "start_method": "Fork"}, {}, True),
    "an overlay that asks for it": ({"script": {"inline": ""}, "overlay": True, "start_method": "Fork"}, {}, None),
    "a GPU": ({}, {"TRAINWRIGHT_VENDOR": "nvidia"}, False),
    "a GPU that asks for it": ({"start_method": "Fork"}, {"TRAINWRIGHT_VENDOR": "amd"}, None),
    "a TPU": ({}, {"TRAINWRIGHT_VENDOR": "tpu", "TRAINWRIGHT_RUNTIME": "torch_xla"}, False),
}


def test_ranks_of_a_machine_with_a_gpu_are_not_forked(monkeypatch, tmp_path):
    (driver := tmp_path / "nvidiactl").touch()
    assert forks(JOB, {"TRAINWRIGHT_VENDOR": "cpu"})
    monkeypatch.setattr(warm, "GPU_DRIVERS", (str(driver),))
    assert not forks(JOB, {"TRAINWRIGHT_VENDOR": "cpu"})


@pytest.mark.parametrize("name", CASES)
def test_only_ranks_that_survive_it_are_forked(name):
    fields, environment, expected = CASES[name]
    job = ResolvedJob(**{**JOB.__dict__, **fields})
    if expected is None:
        with pytest.raises(NotWarm):
            forks(job, environment)
    else:
        assert forks(job, environment) == expected
