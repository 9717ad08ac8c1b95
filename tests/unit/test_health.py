"""What the probes are told: of a replica that leads or waits, and of a watch that has gone blind."""

import pytest

from trainwright_operator.cluster.health import BLIND_SECONDS, Pulse, Watches

LEADERS = {
    "nobody is known to lead": (Pulse(), False, "the leader is not known yet"),
    "nobody answers": (
        Pulse(trouble=lambda: "lease not reached: 403 x"),
        False,
        "the leader is not known yet: lease not reached: 403 x",
    ),
    "another leads": (Pulse(lambda: "operator-1"), True, "standby: operator-1 leads"),
    "it leads and reads": (Pulse(lambda: "operator-1", leads=True), False, "leads, and has not read yet what there is"),
    "it leads": (Pulse(leads=True, primed=True), True, "leads"),
    "it leads without": (Pulse(leads=True, primed=True, without=[lambda: "no x", lambda: ""]), True, "leads; no x"),
}


@pytest.mark.parametrize(("pulse", "good", "why"), LEADERS.values(), ids=LEADERS)
def test_a_leader_is_ready_once_its_caches_are_primed(pulse, good, why):
    assert (pulse.ready().good, pulse.ready().why) == (good, why)
    assert pulse.alive().good


def test_what_stands_still_is_named():
    pulse = Pulse(leads=True, primed=True, still=[lambda: "", lambda: "the watch of pods"])
    assert (pulse.alive().good, pulse.alive().why) == (False, "the watch of pods")
    assert pulse.ready().good, "what is restarted need not be taken out of work before"


PAST = BLIND_SECONDS + 1
HISTORIES = {
    "nothing ever happens": ([("listed", 0), ("listed", 0)], False),
    "the watch saw it first": ([("saw", 7), ("listed", 7), ("listed", 7)], False),
    "the list was first, the event followed": ([("listed", 7), ("saw", 7), ("listed", 7)], False),
    "a later event passed it by": ([("listed", 7), ("saw", 9), ("listed", 9)], False),
    "what was listed is gone by the next list": ([("listed", 7), ("listed", 0)], False),
    "one list proves nothing": ([("listed", 7)], False),
    "two lists find what no watch has seen": ([("saw", 5), ("listed", 7), ("listed", 8)], True),
    "a watch that never saw anything": ([("listed", 7), ("listed", 7)], True),
    "it sees again": ([("listed", 7), ("listed", 8), ("saw", 8)], False),
}


@pytest.mark.parametrize(("history", "blind"), HISTORIES.values(), ids=HISTORIES)
def test_a_watch_is_blind_that_does_not_tell_what_lists_find(history, blind):
    now = [0.0]
    watches = Watches(lambda: now[0])
    for what, version in history:
        getattr(watches, what)("pods", version)
        now[0] += PAST
    assert watches.blind == ({"pods"} if blind else set())


def test_two_lists_in_a_row_are_one_look_and_scopes_are_apart():
    now = [0.0]
    watches = Watches(lambda: now[0])
    for version in (7, 8, 9):
        watches.listed("pods", version)
        now[0] += BLIND_SECONDS / 4
    assert (watches.blind, watches.doubted) == (set(), True)
    now[0] += BLIND_SECONDS
    watches.saw("jobs", 99)
    watches.listed("pods", 9)
    assert watches.blind == {"pods"}
