"""No step for hangTimeoutSeconds: the stacks of every rank in the log, and the exit code that says so."""

import pytest

from trainer.gangs import Gang

BEATING = """
import os, time
from trainwright.launch import nodefiles
beat = nodefiles.Heartbeat(nodefiles.heartbeat_path(nodefiles.node_dir(), nodefiles.local_rank())).beat
def train():
    for step in range(1, 6):
        beat(step)
        time.sleep(0.05)
def wait_for_ever():
    time.sleep(300)
"""
DOING = """
from trainwright.integrations import clock
clock.of_process().enter(clock.STEPPING if os.environ["RANK"] == "0" else clock.DATA)
"""


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 1)])
def test_a_hang_is_seen_and_shown(nodes, per_node, tmp_path):
    with Gang(
        tmp_path, f"{BEATING}{DOING}train(); wait_for_ever()", nodes=nodes, per_node=per_node, hang_timeout_seconds=2
    ) as gang:
        assert gang.run() == [124] * nodes, gang.log()
    logs = "".join(gang.log(node) for node in range(nodes))
    for rank in range(2):
        assert f"--- stacks of rank {rank} ---" in logs
    assert logs.count("in wait_for_ever") == 2
    word = gang.word()
    assert (word.reason, word.step) == ("Hang", 5)
    assert "no rank finished a step for 2 s after step 5; rank 1 waits for its data, for " in word.error


QUIET = {
    "never beats": "time.sleep(3)",
    "beats on": "\nfor _ in range(15): train()",
    "rests after training": "train(); beat(nodefiles.RESTING); time.sleep(3)",
}


@pytest.mark.parametrize("name", QUIET)
def test_slow_but_moving_ranks_are_not_a_hang(name, tmp_path):
    with Gang(tmp_path, BEATING + QUIET[name], hang_timeout_seconds=1) as gang:
        assert gang.run() == [0], gang.log()


def test_one_rank_that_moves_is_enough(tmp_path):
    script = BEATING + "train()\nif os.environ['RANK'] == '0': time.sleep(3)\nelse:\n    for _ in range(12): train()"
    with Gang(tmp_path, script, per_node=2, hang_timeout_seconds=2) as gang:
        assert gang.run() == [0], gang.log()
