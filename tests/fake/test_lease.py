"""Leadership: one holder, takeover after silence, stepping down, handing over at once on release."""

import asyncio
import base64
import copy
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fake import virtual_time
from fake.api_server import FakeApiServer
from trainwright_operator.cluster.client import Api, ApiError, Connection, service_account
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
        assert (first.another(), second.another()) == ("", "a")
        renewing.cancel()
        server.fail("*", 503, times=10_000)
        await asyncio.sleep(QUICK.duration + 0.1)
        assert second.another() == "", "who cannot ask does not know"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.hold(), 0.3)
        assert second.trouble.startswith("lease not reached: ")

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


@pytest.mark.parametrize("verb", ["PUT", "POST"])
def test_a_write_whose_answer_was_lost_is_known_for_ones_own(verb):
    async def play(server, candidate):
        first = candidate("a")
        server.fail("POST", 0, times=verb == "POST", path="/leases", done=True)
        await asyncio.wait_for(first.hold(), 3)
        server.fail("PUT", 0, times=verb == "PUT", path="/leases", done=True)
        renewing = asyncio.create_task(first.keep())
        async with asyncio.timeout(20):
            while server.requests["PUT", "leases"] < 4 and not first.lost.is_set():
                await asyncio.sleep(QUICK.period)
        assert not first.lost.is_set()
        assert server.objects[PATH]["spec"]["holderIdentity"] == "a"
        renewing.cancel()

    scene(play)


def test_a_conflict_with_somebody_who_took_over_is_the_end_at_once():
    async def play(server, candidate):
        first = candidate("a")
        await first.hold()

        def taken(path, body, request):
            lease = server.objects[path]
            lease["spec"].update(holderIdentity="b", leaseDurationSeconds=60)
            server.put(path, lease)
            return FakeApiServer._put(server, path, body, request)

        server._put = taken
        await asyncio.wait_for(first.keep(), 2)
        assert first.lost.is_set()
        assert server.objects[PATH]["spec"]["holderIdentity"] == "b"
        assert server.requests["PUT", "leases"] == 1

    scene(play)


class Slow:
    """The Lease of an API server that takes its time; a request is ``done``, ``refused``, or done and ``unheard``."""

    def __init__(self):
        self.fates, self.lease, self.began, self.renewed = iter(()), {}, 0.0, 0.0

    async def get(self, *_):
        self.began = asyncio.get_running_loop().time()
        await self._fate()
        return {**copy.deepcopy(self.lease), "metadata": {"resourceVersion": "1"}}

    async def replace(self, _, lease):
        self.lease = lease
        await self._fate()
        self.renewed = self.began

    async def _fate(self):
        seconds, fate = next(self.fates, (1000, "refused"))
        await asyncio.sleep(seconds)
        if fate != "done":
            raise ApiError(500, "", fate)


fates = st.lists(st.tuples(st.floats(0, 12), st.sampled_from(["done", "done", "done", "refused", "unheard"])))


@given(fates, st.floats(0, 30))
@example([], 0.0)
@example([(0.1, "done")] * 3 + [(4.9, "refused")] * 2, 0.0)
@example([], 14.0)
def test_work_ends_in_time_whatever_becomes_of_the_requests(fates, priming):
    """A standby takes over ``duration`` after the last renewal was carried out, which is never before its start."""

    async def play():
        loop, server, timing = asyncio.get_running_loop(), Slow(), Timing()
        lease = Lease(server, "ns", "operator", "a", timing)
        server.fates = iter([(0, "done")] * 2)
        await lease.hold()
        server.fates = iter(fates)
        await asyncio.sleep(priming)
        began = loop.time()
        await lease.keep()
        assert lease.lost.is_set()
        assert loop.time() <= max(began, server.renewed + timing.renew_deadline) + 1e-6

    virtual_time.run(play())


def token(**claims):
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return Connection("https://x", None, token=f"e30.{payload}.c2ln")


ACCOUNT = {"namespace": "ns", "serviceaccount": {"name": "trainwright", "uid": "u-1"}}
OWNER = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "trainwright", "uid": "u-1"}


@pytest.mark.parametrize(
    ("connection", "owner"),
    [
        (token(**{"kubernetes.io": ACCOUNT}), OWNER),
        (token(**{"kubernetes.io": {**ACCOUNT, "namespace": "other"}}), None),
        (token(sub="somebody"), None),
        (Connection("https://x", None, token="opaque"), None),
        (Connection("https://x", None, token="a.\xff.c"), None),
        (Connection("https://x", None), None),
    ],
)
def test_what_the_operator_makes_is_owned_by_its_service_account_in_this_namespace(connection, owner):
    assert service_account(connection, "ns") == owner


@pytest.mark.parametrize("before", [False, True], ids=["a new lease", "a lease of an older release"])
def test_the_lease_goes_when_the_chart_is_uninstalled(before):
    async def run():
        server = FakeApiServer()
        async with server.serve() as connection, Api(connection) as api:
            if before:
                former = Lease(api, "ns", "operator", "former", QUICK)
                await former.hold()
                await former.release()
            await Lease(api, "ns", "operator", "a", QUICK, owner=OWNER).hold()
            assert server.objects[PATH]["metadata"]["ownerReferences"] == [OWNER]

    asyncio.run(run())
