"""From the exits of a pod's ranks to its one exit code and one line."""

import pytest

from trainwright.contract import MAX_TERMINATION_BYTES, ExitCode
from trainwright.launch.verdict import Failure, RankExit, in_words, judge, termination

DONE = RankExit(0, 0, 1.0)
PREEMPTED = RankExit(0, 143, 2.0)
CRASH = RankExit(1, 7, 3.0, "boom")
LATER = RankExit(2, 9, 4.0, "later")
SECONDARY = RankExit(0, 1, 1.0, "connection closed by peer", secondary=True)
TOLD = Failure(64, "args: wrong", rank=5, node=2)
HANG = Failure(124, "no rank finished a step")

CASES = {
    # name: (exits, stopped, hung, lost, exit code, rank)
    "all done": ([DONE, DONE], False, None, None, 0, None),
    "done, but asked to stop": ([DONE], True, None, None, 143, None),
    "first failure in time": ([LATER, CRASH], False, None, None, 7, 1),
    "a cause before its consequence, though seen later": ([SECONDARY, CRASH], False, None, None, 7, 1),
    "a consequence alone": ([SECONDARY], False, None, None, 1, 0),
    "another node knows the cause": ([SECONDARY], False, None, TOLD, 64, 5),
    "an own cause beats what another node tells": ([CRASH], False, None, TOLD, 7, 1),
    "nothing failed here": ([], False, None, TOLD, 64, 5),
    "preempted": ([PREEMPTED, PREEMPTED], False, None, None, 143, None),
    "a stop that broke the collective": ([SECONDARY, PREEMPTED], True, None, None, 143, None),
    "a crash of its own while stopping": ([CRASH, PREEMPTED], True, None, None, 7, 1),
    "another node was preempted": ([SECONDARY], False, None, Failure(143), 143, None),
    "stopped because another node had failed": ([SECONDARY], True, None, TOLD, 64, 5),
    "killed after the grace period": ([], True, None, None, 143, None),
    "hang": ([SECONDARY], False, HANG, None, 124, None),
    "another node hangs": ([], False, None, HANG, 124, None),
}


@pytest.mark.parametrize("name", CASES)
def test_judge(name):
    exits, stopped, hung, lost, code, rank = CASES[name]
    end = judge(exits, stopped=stopped, hung=hung, lost=lost)
    assert (end.code, end.rank) == (code, rank)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "rank 4 ended with exit code 3"),
        (139, "rank 4 was killed by SIGSEGV"),
        (137, "memory limit"),
        (255, "code 255"),
    ],
)
def test_a_rank_without_words_is_put_into_words(code, words):
    assert words in in_words(4, code)


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
