"""A rank dies while every pod lives: the launchers stop their ranks, meet again, and start new ones in place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from trainer.gangs import Gang
from trainwright.launch import agent
from trainwright.launch.rendezvous import Place, RendezvousFailed
from trainwright.launch.supervisor import Stop, Supervisor
from trainwright.launch.watchdog import Watchdog

BUDGET = {"TRAINWRIGHT_RESTARTS_LEFT": "1"}
SCRIPT = """
import os, signal, sys, time
rank, round = int(os.environ["RANK"]), int(os.environ["TRAINWRIGHT_ROUND"])
open(f"rank-{rank}-{round}", "w").write(str(os.getpid()))
while not all(os.path.exists(f"rank-{other}-{round}") for other in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.02)
def die(): os.kill(os.getpid(), signal.SIGKILL)
def beat(step):
    from trainwright.launch import nodefiles
    nodefiles.Heartbeat(nodefiles.heartbeat_path(nodefiles.node_dir(), nodefiles.local_rank())).beat(step)
"""


def gang(folder, script, *, nodes=1, environment=None, **options):
    found = Gang(folder, SCRIPT + script, nodes=nodes, **options)
    found.environment = BUDGET | (environment or {})
    return found


ENDS = {
    # name: (what ranks do in round 1; the others wait), what the record says
    "a rank of the second node is killed": ("if rank == 1: die()", (137, 1, 1, "killed by SIGKILL")),
    "the first node's rank raises as another is killed": (
        "if rank == 1: die()\n    raise ValueError('bad luck')",
        (None, None, None, ""),
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_all_ranks_start_again_in_the_same_pods(name, tmp_path):
    deed, (code, rank, node, error) = ENDS[name]
    with gang(tmp_path, f"if round == 1:\n    {deed}\n    time.sleep(300)", nodes=2) as pods:
        assert pods.run() == [0, 0], pods.log(0) + pods.log(1)
        words = [pods.word(each) for each in (0, 1)]
    assert words[0].rounds == words[1].rounds
    assert [word.round for word in words] == [2, 2]
    (ended,) = words[0].rounds
    assert ended["round"] == 1
    assert (code, rank, node) in [(None,) * 3, (ended["code"], ended["rank"], ended["node"])]
    assert error in ended["error"]
    assert "the ranks of round 2 start in the same pods" in pods.log(0)


def test_a_hang_is_followed_by_another_round(tmp_path):
    script = "if round == 1:\n    beat(7)\n    time.sleep(300)"
    with gang(tmp_path, script, per_node=2, hang_timeout_seconds=1) as pods:
        assert pods.run() == [0], pods.log()
        (ended,) = pods.word().rounds
    assert (ended["code"], ended["step"]) == (124, 7)
    assert "no rank finished a step for 1 s after step 7" in ended["error"]


def test_the_last_failure_ends_the_pod_when_the_budget_is_used_up(tmp_path):
    with gang(tmp_path, "sys.exit(round)", per_node=2) as pods:
        assert pods.run() == [2], pods.log()
        word = pods.word()
    assert (word.round, [end["code"] for end in word.rounds]) == (2, [1])
    assert "exit code 2" in word.error


def test_a_node_that_fails_first_twice_in_a_row_ends_the_attempt(tmp_path):
    script = "if rank == 1: die()\ntime.sleep(300)"
    with gang(tmp_path, script, nodes=2, environment={"TRAINWRIGHT_RESTARTS_LEFT": "5"}) as pods:
        assert pods.run() == [137, 137], pods.log(0) + pods.log(1)
        assert [pods.word(node).round for node in (0, 1)] == [2, 2]


def test_no_round_follows_a_permanent_error(tmp_path):
    with gang(tmp_path, "sys.exit(65)") as pods:
        assert pods.run() == [65], pods.log()
        assert (pods.word().round, pods.word().rounds) == (None, [])


def test_a_store_that_is_lost_before_the_ranks_of_a_later_round_begin_is_one_line(tmp_path, monkeypatch):
    def lose(*_):
        raise RuntimeError("Broken pipe\nException raised from a place in C++")

    monkeypatch.setattr(agent, "PodAgent", lambda *_: SimpleNamespace(run=lose))
    monkeypatch.setattr(agent, "logging", Mock())  # it silences torch for good
    for name in ("TORCHELASTIC_SIGNALS_TO_HANDLE", "TRAINWRIGHT_NODE_DIR"):
        monkeypatch.setenv(name, "")
    place, meeting = Place(2, 1, 1, "127.0.0.1", 29500), SimpleNamespace(master_port=29501)
    supervisor = Supervisor(tmp_path, 30.0, Watchdog(None), Stop(early=False))
    with pytest.raises(RendezvousFailed, match=r"^node 1: 127\.0\.0\.1:29500: Broken pipe$"):
        agent.run(meeting, place, ["-m", "trained"], supervisor, 2)


SWEEPS = """
import os, subprocess, sys
from trainwright.launch import reaper

LEAVES = (
    "import os, subprocess; left = subprocess.Popen(['sleep', '300'], start_new_session=True); "
    "print(left.pid, flush=True); os.kill(os.getpid(), 9)"
)
reaper.adopt_orphans()
for _ in range(20):
    rank = subprocess.Popen(
        [sys.executable, "-S", "-c", LEAVES], start_new_session=True, stdout=subprocess.PIPE, env={"NODE": "this"}
    )
    left = int(rank.stdout.readline())
    while reaper.exit_code_of(rank.pid) is None:
        pass
    assert reaper.sweep([rank.pid], "NODE=this")
    assert not os.path.exists(f"/proc/{left}"), "a zombie"
"""


def test_a_sweep_leaves_not_even_zombies():
    subprocess.run([sys.executable, "-c", SWEEPS], check=True, timeout=60)


def test_what_a_round_left_behind_is_gone_before_the_next_one(tmp_path):
    """Also a process that left the rank's session, and one that ignores SIGTERM."""
    script = """
import subprocess
if round == 1:
    left = [subprocess.Popen(["sleep", "300"], start_new_session=apart) for apart in (False, True)]
    open("left", "w").write(" ".join(str(each.pid) for each in left))
    die()
print("seen", [os.path.exists(f"/proc/{pid}") for pid in open("left").read().split()], flush=True)
"""
    with gang(tmp_path, script) as pods:
        assert pods.run() == [0], pods.log()
        assert "seen [False, False]" in pods.log()


def test_a_stop_during_the_wait_for_a_round_is_obeyed(tmp_path):
    script = "if round == 1: die()\ntime.sleep(300)"
    with gang(tmp_path, script, nodes=2, environment={"TRAINWRIGHT_FAILURES_IN_A_ROW": "3"}) as pods:
        pods.start().await_log("the ranks of round 2 start in the same pods in 40 s")
        pods.signal(1)
        pods.signal(0)
        assert pods.wait(30) == [143, 143], pods.log(0) + pods.log(1)
        assert [pods.word(node).ended_by for node in (0, 1)] == ["signal", "signal"]


TRAINING = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
from trainer.resume_job import Interrupt, make_trainer, weights
trainer = make_trainer("run", max_steps=60, save_steps=10, logging_steps=100)
trouble = os.environ.get("TROUBLE")
round = os.environ["TRAINWRIGHT_ROUND"]
class Slow:
    def on_step_end(self, args, state, control, **_):
        if state.global_step >= 32:
            open("ready-" + os.environ["RANK"], "w").write("yes")
            time.sleep(1)
if trouble and round == "1":
    trainer.add_callback(Interrupt(25, 1))
elif trouble:
    trainer.add_callback(Slow())
trainer.train()
if trainer.is_world_process_zero():
    torch.save(weights(trainer), "final.pt")
"""


def train(folder: Path, trouble: str = "", attempt: int = 1, start_method: str = "Fork") -> Gang:
    folder.mkdir(exist_ok=True)
    script = TRAINING.format(tests=str(Path(__file__).parent.parent))
    found = Gang(folder, script, nodes=2, attempt=attempt, start_method=start_method)
    found.environment = BUDGET | {"TROUBLE": trouble}
    return found


def test_a_killed_rank_a_round_a_preemption_and_an_attempt_end_with_the_same_weights(tmp_path):
    """In the second round SIGTERM still makes all ranks save the same step, although a first round was cut off.

    The undisturbed ranks are spawned, the others forked.
    """
    with train(tmp_path / "undisturbed", start_method="Spawn") as pods:
        assert pods.run() == [0, 0], pods.log(0) + pods.log(1)
    disturbed = tmp_path / "disturbed"
    with train(disturbed, "a rank is killed") as pods:
        pods.start().await_file("ready-1")
        pods.signal(1)
        assert pods.wait() == [143, 143], pods.log(0) + pods.log(1)
        assert [pods.word(node).round for node in (0, 1)] == [2, 2]
    saved = max(int(folder.name.partition("-")[2]) for folder in (disturbed / "output" / "run").glob("checkpoint-*"))
    assert saved >= 32  # where the stop came, after the step that the first round had reached
    assert {"attempt-1", "attempt-1.2"} <= set(os.listdir(disturbed / "output" / "run" / ".trainwright"))
    with train(disturbed, attempt=2) as pods:
        assert pods.run() == [0, 0], pods.log(0) + pods.log(1)
    expected, found = (torch.load(folder / "final.pt") for folder in (tmp_path / "undisturbed", disturbed))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


LEFT_OVER = """
import os, signal, sys
from trainwright.checkpoint.store import CheckpointStore
from trainwright.contract import ResolvedJob
store = CheckpointStore.of_job(sys.argv[1], ResolvedJob("job", "default", "uid", 1, 1, 1))
store.claim()
print("claimed", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
store.write(5, [])
"""


def test_a_rank_of_an_earlier_round_that_wakes_up_writes_nothing(tmp_path):
    def rank(number):
        return subprocess.Popen(
            [sys.executable, "-c", LEFT_OVER, str(tmp_path)],
            env={**os.environ, "TRAINWRIGHT_ROUND": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    former = rank(1)
    assert former.stdout.readline() == "claimed\n"
    newer = rank(2)
    assert newer.stdout.readline() == "claimed\n"
    former.send_signal(signal.SIGCONT)
    assert former.wait(60) != 0
    assert "round 2 of attempt 1 has claimed it; round 1 stops writing here" in former.stderr.read()
    assert not list(tmp_path.glob("*checkpoint-*"))
    deadline = time.monotonic() + 60
    while newer.poll() is None and time.monotonic() < deadline:
        newer.send_signal(signal.SIGCONT)  # it may not have stopped yet when this is sent first
        time.sleep(0.05)
    assert (newer.returncode, newer.stderr.read()) == (0, "")
    assert (tmp_path / "checkpoint-5").is_dir()
