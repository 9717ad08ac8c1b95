"""Where a pod stands in its gang, and how long it waits for the master's name."""

import socket

import pytest

from trainwright.contract import MASTER_PORT, UserError
from trainwright.launch.rendezvous import RENDEZVOUS_SECONDS, Place, RendezvousFailed, wait_for_master

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


def test_it_waits_until_the_name_resolves():
    answers = [socket.gaierror(-2, "Name or service not known"), socket.gaierror(-3, "Temporary failure"), None]

    def resolve(host, port):
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    wait_for_master(Place.of(TWO), resolve)
    assert answers == []


def test_it_gives_up_in_words():
    def resolve(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    place = Place(2, 1, 1, "job-0-1-0.job", MASTER_PORT, timeout=0)
    with pytest.raises(RendezvousFailed, match=r"node 1 waited 0 s for node 0: job-0-1-0.job does not resolve"):
        wait_for_master(place, resolve)
