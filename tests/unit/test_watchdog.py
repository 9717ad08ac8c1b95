"""When a node's ranks hang, from their pulses and a clock."""

import pytest

from trainwright.launch.nodefiles import RESTING, Heartbeat, Pulse, heartbeat_path, read_pulse
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
    watchdog = Watchdog(None)
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
