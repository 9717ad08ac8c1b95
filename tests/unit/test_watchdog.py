"""When a node's ranks hang, from their pulses and a clock."""

import os
import signal
import subprocess
from array import array

import pytest

from trainwright.contract import CLOCK_CAUSES
from trainwright.launch.nodefiles import RESTING, Heartbeat, Pulse, clock_path, heartbeat_path, read_pulse
from trainwright.launch.suspects import suspects
from trainwright.launch.watchdog import Watchdog


def moving(beats: int) -> Pulse:
    return Pulse(beats, beats, resting=False)


QUIET, REST = Pulse(0, 0, resting=True), Pulse(9, 9, resting=True)

CASES = {
    # name: (looks as (time, pulses of all local ranks), whether the last one shows a hang)
    "never beat": ([(0, [QUIET]), (100, [QUIET])], False),
    "just now": ([(0, [moving(1)]), (10, [moving(1)])], False),
    "too long": ([(0, [moving(1)]), (5, [moving(2)]), (15.1, [moving(2)])], True),
    "moved again": ([(0, [moving(1)]), (9, [moving(2)]), (18, [moving(2)])], False),
    "one of two moves": (
        [(0, [moving(1), moving(1)]), (9, [moving(1), moving(2)]), (18, [moving(1), moving(2)])],
        False,
    ),
    "one never beat": ([(0, [moving(1), QUIET]), (11, [moving(1), QUIET])], True),
    "resting": ([(0, [moving(1)]), (5, [REST]), (50, [REST])], False),
    "beats after a rest": ([(0, [REST]), (50, [moving(10)]), (55, [moving(10)])], False),
    "hangs after a rest": ([(0, [REST]), (50, [moving(10)]), (61, [moving(10)])], True),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hang_is_declared_after_the_timeout_without_a_heartbeat(name):
    looks, expected = CASES[name]
    watchdog = Watchdog(timeout=10)
    assert [watchdog.hangs(pulses, now) for now, pulses in looks][-1] == expected


def test_without_a_timeout_it_never_barks():
    watchdog = Watchdog(0)
    assert not any(watchdog.hangs([moving(1)], now) for now in range(0, 10**6, 10**5))


def test_a_heartbeat_is_read_by_another_process(tmp_path):
    path = heartbeat_path(tmp_path, 0)
    assert read_pulse(path) == Pulse(0, 0, resting=True)
    heartbeat = Heartbeat(path)
    assert read_pulse(path).resting
    heartbeat.beat(7)
    heartbeat.beat(7)
    assert read_pulse(path) == Pulse(2, 7, resting=False)
    heartbeat.beat(RESTING)
    assert read_pulse(path) == Pulse(3, 7, resting=True)


def look(watchdog, beats, now, phase="stepping", times=1):
    return watchdog.hangs([Pulse(beats, beats, resting=False, phase=phase)] * times, now)


def test_without_a_timeout_ten_minutes_are_the_least():
    watchdog = Watchdog(None)
    assert not look(watchdog, 1, 0)
    assert not look(watchdog, 2, 1)
    assert not look(watchdog, 2, 1 + 604)
    assert look(watchdog, 2, 1 + 606)
    assert watchdog.timeout == 600


def test_it_learns_from_the_longest_step_evaluation_or_save():
    watchdog = Watchdog(None)
    look(watchdog, 1, 0)
    look(watchdog, 2, 200)  # a step with a save of 200 s
    look(watchdog, 3, 201)
    assert not look(watchdog, 3, 201 + 1999)
    assert look(watchdog, 3, 201 + 2006)


def test_a_first_save_and_a_foreign_trainer_have_an_hour():
    for phase in ("saving", "evaluating", "compiling", ""):
        watchdog = Watchdog(None)
        look(watchdog, 1, 0, phase)
        assert not look(watchdog, 1, 3599, phase)
        assert look(watchdog, 1, 3601, phase)


def test_a_node_within_a_step_lets_that_of_the_rank_it_waits_for_speak_first():
    watchdogs = Watchdog(100), Watchdog(100)
    for watchdog, phase in zip(watchdogs, ("stepping", "data"), strict=True):
        look(watchdog, 1, 0, phase)
    assert [look(watchdog, 1, 101, phase) for watchdog, phase in zip(watchdogs, ("stepping", "data"), strict=True)] == [
        False,
        True,
    ]


# Whom the others wait for


def write_clock(folder, local_rank, phase, step, since=0.0):
    slots = [0.0] * len(CLOCK_CAUSES) + [since or 1.0, step, 0, 0, CLOCK_CAUSES.index(phase)]
    clock_path(folder, local_rank).write_bytes(array("d", slots).tobytes())


SUSPECTS = {
    "one waits for its data": ([("stepping", 5), ("data", 5)], "rank 9 waits for its data, for 600 s"),
    "one is behind": ([("stepping", 5), ("stepping", 4)], "rank 9 has finished step 4, others step 5"),
    "one saves": ([("saving", 5), ("stepping", 5)], "rank 8 saves, for 600 s"),
    "all are in the step": ([("stepping", 5), ("stepping", 5)], "every rank of this pod is within step 6"),
    "they say nothing": ([], ""),
}


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_hang_names_the_rank_that_the_others_wait_for(name, tmp_path):
    clocks, expected = SUSPECTS[name]
    for local, (phase, step) in enumerate(clocks):
        write_clock(tmp_path, local, phase, step, since=400.0)
    ranks = {8 + local: (local, os.getpid()) for local in range(max(1, len(clocks)))}
    assert suspects(tmp_path, ranks, now=1000.0) == expected


def test_a_stopped_process_is_named_whatever_it_did(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    try:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        write_clock(tmp_path, 0, "stepping", 5)
        write_clock(tmp_path, 1, "stepping", 5)
        named = suspects(tmp_path, {0: (0, os.getpid()), 1: (1, process.pid)}, now=9.0)
    finally:
        process.kill()
        process.wait()
    assert named == "rank 1 is stopped (by SIGSTOP, or a debugger)"
