"""From the exits of a pod's ranks to its one exit code and one line."""

import json
from dataclasses import replace

import pytest

from trainwright.contract import MAX_TERMINATION_BYTES, EndedBy, ExitCode
from trainwright.launch.verdict import Failure, RankExit, decide, exit_message, termination

DONE = RankExit(0, 0, 1.0)
PREEMPTED = RankExit(0, 143, 2.0)
CRASH = RankExit(1, 7, 3.0, "boom")
LATER = RankExit(2, 9, 4.0, "later")
SECONDARY = RankExit(0, 1, 1.0, "connection closed by peer", secondary=True)
SIGNAL, PEER, SCRIPT, LOST = EndedBy.SIGNAL, EndedBy.PEER, EndedBy.SCRIPT, EndedBy.LOST
TOLD = Failure(64, "args: wrong", rank=5, node=2, by=PEER)
ASKED, UNASKED = Failure(143, by=PEER), Failure(143, "by itself", rank=3, by=PEER)
GONE = Failure(1, "node 0 is gone", node=0, by=LOST)
HANG = Failure(124, "no rank finished a step")

CASES = {
    # name: (exits, who asked to stop, hung, lost, exit code, rank, who ended it)
    "all done": ([DONE, DONE], None, None, None, 0, None, SCRIPT),
    "done, but asked to stop": ([DONE], SIGNAL, None, None, 143, None, SIGNAL),
    "first failure in time": ([LATER, CRASH], None, None, None, 7, 1, SCRIPT),
    "a cause before its consequence, though seen later": ([SECONDARY, CRASH], None, None, None, 7, 1, SCRIPT),
    "a consequence alone": ([SECONDARY], None, None, None, 1, 0, LOST),
    "another node knows the cause": ([SECONDARY], None, None, TOLD, 64, 5, PEER),
    "an own cause beats what another node tells": ([CRASH], None, None, TOLD, 7, 1, SCRIPT),
    "nothing failed here": ([], None, None, TOLD, 64, 5, PEER),
    "node 0 is gone": ([SECONDARY], None, None, GONE, 1, None, LOST),
    "node 0 is gone, all were asked": ([PREEMPTED], SIGNAL, None, GONE, 1, None, SIGNAL),
    "the script says stopped by itself": ([PREEMPTED, PREEMPTED], None, None, None, 143, 0, SCRIPT),
    "the script says so, and its peers were stopped for it": ([PREEMPTED], SCRIPT, None, None, 143, 0, SCRIPT),
    "the script breaks the collective as it leaves": ([SECONDARY, PREEMPTED], SCRIPT, None, None, 143, 0, SCRIPT),
    "asked by a signal": ([PREEMPTED, PREEMPTED], SIGNAL, None, None, 143, None, SIGNAL),
    "a stop that broke the collective": ([SECONDARY, PREEMPTED], SIGNAL, None, None, 143, None, SIGNAL),
    "a crash of its own while stopping": ([CRASH, PREEMPTED], SIGNAL, None, None, 7, 1, SIGNAL),
    "another node said so by itself": ([], PEER, None, UNASKED, 143, 3, PEER),
    "two nodes said so at once": ([PREEMPTED], SCRIPT, None, UNASKED, 143, 0, SCRIPT),
    "a rank heard of the stop before its launcher": ([PREEMPTED], SCRIPT, None, ASKED, 143, None, PEER),
    "another node was asked": ([SECONDARY], None, None, ASKED, 143, None, PEER),
    "another node was asked, and this one followed": ([PREEMPTED], PEER, None, ASKED, 143, None, PEER),
    "stopped, and another node failed to save": ([SECONDARY], SIGNAL, None, TOLD, 64, 5, SIGNAL),
    "killed after the grace period": ([], SIGNAL, None, None, 143, None, SIGNAL),
    "hang": ([SECONDARY], None, HANG, None, 124, None, SCRIPT),
    "another node hangs": ([], None, None, replace(HANG, by=PEER), 124, None, PEER),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_failure_and_the_stop_decide_how_a_node_ends(name):
    exits, stopped, hung, lost, code, rank, by = CASES[name]
    end = decide(exits, stopped=stopped, hung=hung, lost=lost)
    assert (end.code, end.rank, end.by) == (code, rank, by)
    assert termination(end).ended_by == (None if code == 0 else by)


def test_no_rank_is_blamed_for_a_stop_that_all_agreed_to_though_nobody_asked():
    end = decide([PREEMPTED, replace(PREEMPTED, rank=1)], stopped=SCRIPT)
    assert (end.code, end.rank) == (143, None)
    assert str(end.error).startswith("ranks 0, 1 ended with exit code 143, though nobody asked their pod to stop")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, "rank 4 ended with exit code 3"),
        (139, "rank 4 was killed by SIGSEGV"),
        (137, "memory limit"),
        (255, "code 255"),
    ],
)
def test_a_rank_that_wrote_no_error_gets_a_message_from_its_exit_code(code, message):
    assert message in exit_message(4, code)


def test_termination_joins_end_report_and_heartbeat():
    report = {"step": 8, "max_steps": 10, "metrics": {"loss": 1.5}, "checkpoint": {"path": "checkpoint-5", "step": 5}}
    word = termination(Failure(7, "boom", rank=1), report, step=9)
    assert (word.reason, word.exit_code, word.rank, word.step, word.max_steps) == ("Error", 7, 1, 9, 10)
    assert (word.error, word.metrics, word.checkpoint) == ("boom", {"loss": 1.5}, "checkpoint-5")


@pytest.mark.parametrize("code", ExitCode)
def test_every_documented_code_has_its_reason(code):
    assert termination(Failure(code)).reason != "Error"


def test_the_final_word_fits_whatever_it_holds():
    report = {"metrics": {f"metric_{number}": 0.123456789 for number in range(500)}}
    assert len(termination(Failure(1, "x" * 9000), report).to_json().encode()) <= MAX_TERMINATION_BYTES


def test_a_final_word_that_was_cut_says_so():
    error = json.loads(termination(Failure(1, "x" * 9000)).to_json())["error"]
    assert error.endswith(f"x ... and {9000 - error.count('x')} more characters")
