"""Leadership: one holder, takeover after silence, stepping down, handing over at once on release."""

import asyncio

import pytest

from fake.api_server import FakeApiServer
from trainwright_operator.cluster.api import Api
from trainwright_operator.cluster.lease import Lease, Timing

QUICK = Timing(duration=0.6, renew_deadline=0.3, period=0.03)
PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/operator"


def scene(play):
    """Run ``play(server, candidate)`` where ``candidate(name)`` makes one more replica."""

    async def run():
        server = FakeApiServer()
        async with server.serve() as connection, Api(connection) as api:
            await play(server, lambda name: Lease(api, "ns", "operator", name, QUICK))

    asyncio.run(run())


def test_the_second_waits_while_the_first_renews():
    async def play(server, candidate):
        first, second = candidate("a"), candidate("b")
        await first.hold()
        renewing = asyncio.create_task(first.keep())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.hold(), 1.2)
        assert server.objects[PATH]["spec"]["holderIdentity"] == "a"
        assert not first.lost.is_set()
        renewing.cancel()

    scene(play)


def test_a_silent_holder_is_followed_after_the_duration_and_not_before():
    async def play(server, candidate):
        loop = asyncio.get_running_loop()
        await candidate("a").hold()
        server.objects[PATH]["spec"]["leaseDurationSeconds"] = QUICK.duration
        started = loop.time()
        await asyncio.wait_for(candidate("b").hold(), 3)
        assert loop.time() - started >= QUICK.duration
        assert server.objects[PATH]["spec"]["leaseTransitions"] == 1

    scene(play)


def test_release_hands_over_at_once():
    async def play(server, candidate):
        first = candidate("a")
        await first.hold()
        await first.release()
        await asyncio.wait_for(candidate("b").hold(), QUICK.duration / 2)
        assert server.objects[PATH]["spec"]["holderIdentity"] == "b"

    scene(play)


def test_a_holder_that_cannot_renew_steps_down_before_its_lease_runs_out():
    async def play(server, candidate):
        first = candidate("a")
        await first.hold()
        server.fail("*", 403, times=10_000)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.wait_for(first.keep(), 2)
        assert first.lost.is_set()
        assert loop.time() - started < QUICK.duration

    scene(play)


def test_a_holder_that_was_replaced_steps_down():
    async def play(server, candidate):
        first = candidate("a")
        await first.hold()
        server.objects[PATH]["spec"].update(holderIdentity="b", leaseDurationSeconds=60)
        await asyncio.wait_for(first.keep(), 1)
        assert first.lost.is_set()

    scene(play)


def test_releasing_somebody_elses_lease_changes_nothing():
    async def play(server, candidate):
        await candidate("a").hold()
        await candidate("b").release()
        assert server.objects[PATH]["spec"]["holderIdentity"] == "a"

    scene(play)
