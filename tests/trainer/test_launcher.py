"""What a pod exits with and says at its end, for every way a rank can end."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import trainwright
from trainer.gangs import Gang, children

FAILS = "def fit():\n    raise ValueError('bad\\nshape')\nfit()"
RAISE = "from trainwright.contract import DataError, UserError\nraise "
NO_MODULE = (
    "script.py, line 2: no module named 'nosuchpackage' in this image; add nosuchpackage to "
    "script.requirements, use an image that has it (podTemplate.image), or put the module's files beside the script"
)
BESIDE = "import pathlib\npathlib.Path(__file__).with_name('helper.py').write_text('x = 1\\ny = (')\n"
ENDS = {
    # name: (script, exit code, reason, words of the error)
    "done": ("print('trained')", 0, "Completed", None),
    "user error": (RAISE + "UserError('model: no such thing')", 64, "BadConfiguration", "model: no such thing"),
    "data error": (RAISE + "DataError('data.csv: empty')", 65, "BadData", "data.csv: empty"),
    "exception": (FAILS, 1, "Error", "ValueError: bad shape (script.py, line 2)"),
    "exit code": ("import sys; sys.exit(77)", 77, "Error", "exit code 77"),
    "stopped, it says": ("import sys; sys.exit(143)", 143, "Preempted", "rank 0 ended with exit code 143 by itself"),
    "exit text": ("import sys; sys.exit('nothing to do')", 1, "Error", "nothing to do"),
    "abrupt": ("import os; os._exit(3)", 3, "Error", "rank 0 ended with exit code 3"),
    "killed": (
        "import os; os.kill(os.getpid(), 9)",
        137,
        "Error",
        "rank 0 was killed by SIGKILL (exit code 137)",
    ),
    "crashed": ("import os; os.kill(os.getpid(), 11)", 139, "Error", "SIGSEGV"),
    "no module": ("x = 1\nimport nosuchpackage.part", 64, "BadConfiguration", NO_MODULE),
    "no name": ("from sklearn import nosuch", 64, "BadConfiguration", "script.py, line 1: cannot import name 'nosuch'"),
    "no Python beside it": (
        BESIDE + "import helper",
        64,
        "BadConfiguration",
        "helper.py, line 2: '(' was never closed",
    ),
    "not Python": ("x = 1\ndef f(:\n", 64, "BadConfiguration", "script: script.py, line 2: invalid syntax"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_pod_ends_as_its_rank_does(name, tmp_path):
    script, code, reason, error = ENDS[name]
    with Gang(tmp_path, script) as gang:
        assert gang.run() == [code], gang.log()
        word = gang.word()
    assert (word.reason, word.exit_code) == (reason, code)
    assert word.ended_by == ("script" if code else None)
    assert error is None or (error in word.error and "\n" not in word.error)
    assert ("Traceback" in gang.log()) == (name == "exception")


def test_a_traceback_shows_the_users_frames_alone(tmp_path):
    with Gang(tmp_path, FAILS) as gang:
        gang.run()
    assert "script.py" in gang.log()
    assert "runpy" not in gang.log()
    assert "entry.py" not in gang.log()


def test_a_script_sees_itself_as_python_would_start_it(tmp_path):
    (tmp_path / "helper.py").write_text("VALUE = 7")
    path = tmp_path / "mine.py"
    path.write_text("import sys, helper\nprint('SEEN', __name__, sys.argv, helper.VALUE)")
    with Gang(tmp_path, script=None, nodes=1) as gang:
        pass
    with Gang(tmp_path, script={"path": str(path), "args": ["--lr=1", "a b"]}) as gang:
        assert gang.run() == [0]
    assert f"SEEN __main__ {[str(path), '--lr=1', 'a b']} 7" in gang.log()


def test_the_first_failure_ends_the_other_ranks_promptly(tmp_path):
    script = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(77)\ntime.sleep(300)"
    with Gang(tmp_path, script, per_node=2) as gang:
        assert gang.run() == [77]  # not after 300 s
    assert gang.word().rank == 1


COLLECTIVE = """
import os, torch
import torch.distributed as dist
from trainwright.contract import UserError
dist.init_process_group("gloo")
rank = dist.get_rank()
for step in range(100000):
    if step == 20 and rank == FAILING:
        FAIL
    dist.all_reduce(torch.ones(1))
"""


def failing(rank: int, how: str) -> str:
    return COLLECTIVE.replace("FAILING", str(rank)).replace("FAIL", how)


def test_a_lost_peer_does_not_hide_the_cause(tmp_path):
    with Gang(tmp_path, failing(1, "os.kill(os.getpid(), 9)"), per_node=2) as gang:
        assert gang.run() == [137], gang.log()
    assert gang.word().rank == 1


def test_every_node_tells_the_same_story(tmp_path):
    with Gang(tmp_path, failing(1, "raise UserError('args: wrong on one node')"), nodes=2) as gang:
        assert gang.run() == [64, 64], gang.log(0) + gang.log(1)
    assert [gang.word(node).error for node in (0, 1)] == ["args: wrong on one node"] * 2
    assert [gang.word(node).rank for node in (0, 1)] == [1, 1]
    assert [gang.word(node).ended_by for node in (0, 1)] == ["peer", "script"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_vanishes_ends_the_other(tmp_path, lost):
    script = failing(-1, "pass").replace("for step", "open(f'ready-{rank}', 'w').write('yes')\nfor step")
    with Gang(tmp_path, script, nodes=2) as gang:
        gang.start()
        for rank in (0, 1):
            gang.await_file(f"ready-{rank}")
        launcher = gang.launchers[lost].pid
        for process in (launcher, *children(launcher)):
            os.kill(process, signal.SIGKILL)
        code = gang.launchers[1 - lost].wait(60)
    assert code == 1, gang.log(1 - lost)
    assert (gang.word(1 - lost).reason, gang.word(1 - lost).ended_by) == ("Error", "lost")


def test_two_nodes_of_two_ranks_train_to_the_end(tmp_path):
    script = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank())])
dist.all_reduce(total)
print("TOTAL", dist.get_rank(), dist.get_world_size(), total.item(), flush=True)
dist.destroy_process_group()
"""
    with Gang(tmp_path, script, nodes=2, per_node=2) as gang:
        assert gang.run() == [0, 0], gang.log(0) + gang.log(1)
    assert all(f"TOTAL {rank} 4 6.0" in gang.log(rank // 2) for rank in range(4))


def test_the_last_report_is_the_final_word(tmp_path):
    script = """
import json, os, pathlib
from trainwright.launch import nodefiles
folder = nodefiles.node_dir()
nodefiles.report_path(folder).write_text(json.dumps({"step": 9, "max_steps": 10, "epoch": 0.9, "metrics": {"loss": 2.5},
    "checkpoint": {"path": "checkpoint-8", "step": 8}, "best": {"metric": "loss", "value": 2.5}}))
nodefiles.Heartbeat(nodefiles.heartbeat_path(folder, 0)).beat(10)
"""
    with Gang(tmp_path, script) as gang:
        assert gang.run() == [0]
    word = gang.word()
    assert (word.step, word.max_steps, word.metrics, word.checkpoint) == (10, 10, {"loss": 2.5}, "checkpoint-8")
    assert word.best == {"metric": "loss", "value": 2.5}


WRONG = {
    "newer job": (
        lambda gang: _edit_job(gang, '"version":1', '"version":9'),
        {},
        76,
        "resolved job version 9: this trainer image understands version 1, which is older than the operator",
    ),
    "older job": (
        lambda gang: _edit_job(gang, '"version":1', '"version":0'),
        {},
        76,
        "which is newer than the operator: upgrade the operator, or use the image of the operator's release",
    ),
    "unknown field": (
        lambda gang: _edit_job(gang, '"uid":', '"colour":1,"uid":'),
        {},
        76,
        "colour is not known to this trainer image, which is older than the operator",
    ),
    "no job": (lambda gang: (gang.folder / "job.json").unlink(), {}, 64, "job.json"),
    "rank beyond": (None, {"PET_NODE_RANK": "1"}, 64, "PET_NODE_RANK"),
    "no number": (None, {"PET_NPROC_PER_NODE": "auto"}, 64, "PET_NPROC_PER_NODE: 'auto'"),
    "no such script": (
        lambda gang: _edit_job(gang, '"inline":"pass"', '"path":"/no/such.py"'), {}, 64, "cannot read /no/such.py",
    ),
    "no master": (
        None,
        {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "nowhere.invalid", "PET_RDZV_CONF": "timeout=1"},
        1, "nowhere.invalid does not resolve",
    ),
    "silent master": (
        None, {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_RDZV_CONF": "timeout=1"},
        1, "node 1 waited 1 s for node 0 at 127.0.0.1:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_pod_that_cannot_start_says_why_in_one_line(name, tmp_path):
    spoil, environment, code, words = WRONG[name]
    with Gang(tmp_path, "pass") as gang:
        gang.environment = environment
        if spoil is not None:
            spoil(gang)
        assert gang.run() == [code], gang.log()
    assert words in gang.word().error
    assert "Traceback" not in gang.log()


def _edit_job(gang: Gang, old: str, new: str) -> None:
    path = gang.folder / "job.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_orphans_are_reaped_and_leftovers_ended(tmp_path):
    script = """
import os, subprocess, time
subprocess.run(["sh", "-c", "sleep 0.2 &"])                        # an orphan that ends
left = subprocess.Popen(["sh", "-c", "sleep 300 & echo $! > left"])  # one that would stay
time.sleep(1.5)
parent = os.getppid()
states = []
for task in os.listdir(f"/proc/{parent}/task"):
    for child in open(f"/proc/{parent}/task/{task}/children").read().split():
        states.append(open(f"/proc/{child}/stat").read().rsplit(")", 1)[1].split()[0])
open("states", "w").write(" ".join(states))
"""
    with Gang(tmp_path, script) as gang:
        assert gang.run() == [0]
    assert "Z" not in gang.await_file("states")
    left = int(gang.await_file("left"))
    deadline = time.monotonic() + 5
    while Path(f"/proc/{left}").exists() and "Z" not in Path(f"/proc/{left}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_runs_from_a_copied_folder_with_torch_alone(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(Path(trainwright.__file__).parent, copy / "trainwright")
    (copy / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(('accelerate', 'yaml', 'transformers', 'safetensors')))\n"
    )
    with Gang(tmp_path, "import trainwright; print('FROM', trainwright.__file__)") as gang:
        gang.environment = {"PYTHONPATH": str(copy)}
        assert gang.run() == [0], gang.log()
    assert f"FROM {copy}" in gang.log()


def test_the_lines_of_several_ranks_say_whose_they_are(tmp_path):
    script = """
import os, sys
rank = os.environ["RANK"]
for number in range(300):
    print(rank * 50, number)
sys.stderr.write(f"10%\\r20%\\rno end of {rank}")
"""
    with Gang(tmp_path, script, per_node=2) as gang:
        assert gang.run() == [0]
    lines = [line for line in gang.log().replace("\r", "\n").splitlines() if line.startswith("[rank ")]
    for rank in "01":
        own = [line.removeprefix(f"[rank {rank}] ") for line in lines if line.startswith(f"[rank {rank}]")]
        assert [line for line in own if line.startswith(rank * 50)] == [f"{rank * 50} {n}" for n in range(300)]
        assert {"10%", "20%", f"no end of {rank}"} <= set(own)
