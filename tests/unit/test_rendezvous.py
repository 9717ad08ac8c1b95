"""Where a pod stands in its gang, and what it says while it waits for the others."""

import socket

import pytest

from trainwright.contract import MASTER_PORT, UserError
from trainwright.launch import rendezvous
from trainwright.launch.rendezvous import (
    RENDEZVOUS_SECONDS,
    Place,
    RendezvousFailed,
    Wait,
    named,
    wait_for_master,
    wait_for_port,
)

TWO = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "4", "PET_MASTER_ADDR": "job-0-1-0.job"}


def test_a_gang_meets_at_its_master():
    place = Place.of(TWO)
    assert place == Place(2, 4, 1, "job-0-1-0.job", MASTER_PORT, RENDEZVOUS_SECONDS)
    assert place.ranks == range(4, 8)


def test_a_single_node_meets_on_loopback_whatever_its_name():
    place = Place.of({"PET_MASTER_ADDR": "job-0-1-0.job", "PET_MASTER_PORT": "123"})
    assert (place.nodes, place.master, place.port) == (1, "127.0.0.1", 123)
    assert Place.of({}).port > 0


@pytest.mark.parametrize(("text", "seconds"), [("timeout=7", 7), ("a=b, timeout = 9", 9), ("a=b", RENDEZVOUS_SECONDS)])
def test_the_timeout_is_torchruns_own_setting(text, seconds):
    assert Place.of({**TWO, "PET_RDZV_CONF": text}).timeout == seconds


@pytest.mark.parametrize(("first", "index", "rank"), [("0", "0", 0), ("0", "1", 1), ("2", "0", 2), ("2", "1", 3)])
def test_a_slices_hosts_count_on_from_its_first_ones_rank(first, index, rank):
    told = {**TWO, "PET_NNODES": "4", "PET_NODE_RANK": index, "TRAINWRIGHT_FIRST_NODE_RANK": first}
    assert Place.of(told).node_rank == rank


WRONG = {
    "PET_NNODES": "0",
    "PET_NODE_RANK": "2",
    "PET_NPROC_PER_NODE": "gpu",
    "PET_MASTER_ADDR": "",
    "PET_MASTER_PORT": "-1",
    "PET_RDZV_CONF": "timeout=soon",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variable_is_named(name):
    with pytest.raises(UserError, match=name):
        Place.of({**TWO, name: WRONG[name]})


class Clock:
    """Goes on by a second at every look."""

    def __init__(self):
        self.now = -1.0

    def __call__(self):
        self.now += 1.0
        return self.now


def waiting(timeout=RENDEZVOUS_SECONDS):
    place, told = Place(2, 1, 1, "job-0-1-0.tj-job", MASTER_PORT, timeout), []
    return place, Wait(place, told.append, Clock()), told


def failing(*answers):
    """A call that fails with each of them in turn, then succeeds."""
    left = list(answers)

    def call(*_, **__):
        if left:
            raise left.pop(0)
        return socket.socket()

    return call


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(rendezvous.time, "sleep", lambda seconds: None)


UNKNOWN = socket.gaierror(-2, "Name or service not known")
CASES = {
    "name": (
        wait_for_master,
        [UNKNOWN] * 30,
        "node 1 has waited 15 s for node 0: job-0-1-0.tj-job does not resolve (Name or service not known); check that "
        "its pod runs, the Service tj-job and the cluster's DNS",
    ),
    "no listener": (
        wait_for_port,
        [ConnectionRefusedError(111, "Connection refused")] * 30,
        f"node 1 has waited 15 s for node 0 at job-0-1-0.tj-job:{MASTER_PORT}: it does not listen yet; see its log",
    ),
    "no answer": (
        wait_for_port,
        [TimeoutError("timed out")] * 30,
        f"node 1 has waited 15 s for node 0 at job-0-1-0.tj-job:{MASTER_PORT}: timed out; check that a NetworkPolicy "
        "lets the job's pods reach one another on every port, the Service tj-job and the cluster's DNS",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_who_waits_says_for_whom_once_in_a_while(name):
    wait_for, errors, words = CASES[name]
    place, wait, told = waiting()
    wait_for(place, wait, failing(*errors))
    assert told == [words]
    wait_for(place, wait, failing(*errors * 2))
    assert len(told) == 2, "four times later"


@pytest.mark.parametrize("name", CASES)
def test_who_meets_soon_says_nothing(name):
    wait_for, errors, _ = CASES[name]
    place, wait, told = waiting()
    wait_for(place, wait, failing(*errors[:9]))
    assert (told, wait.reported) == ([], False)


@pytest.mark.parametrize("name", CASES)
def test_a_meeting_that_times_out_says_what_it_waited_for(name):
    wait_for, errors, words = CASES[name]
    place, wait, _ = waiting(timeout=9)
    with pytest.raises(RendezvousFailed) as failed:
        wait_for(place, wait, failing(*errors))
    assert str(failed.value) == words.replace("has waited 15 s", "waited 9 s")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [([3], "node 3"), ([1, 2], "nodes 1, 2"), (list(range(1, 11)), "nodes 1, 2, 3, 4, 5, 6, 7, 8 and 2 more")],
)
def test_absent_nodes_are_named(nodes, words):
    assert named(nodes) == words
