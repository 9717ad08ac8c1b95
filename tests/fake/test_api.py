"""The API client against an API server that fails on cue."""

import asyncio

import pytest

from fake.api_server import FakeApiServer
from trainwright_operator.cluster.api import Api, ApiError, Resource

SERVICES = Resource("v1", "Service", "services")
JOBS = Resource("batch/v1", "Job", "jobs")


def service(name="s"):
    return {"metadata": {"namespace": "ns", "name": name}}


def with_api(scene, server):
    async def run():
        answers = []
        async with (
            server.serve() as connection,
            Api(connection, lambda verb, code: answers.append((verb, code))) as api,
        ):
            return await scene(api), answers

    return asyncio.run(run())


def test_paths():
    assert SERVICES.path("ns", "s") == "/api/v1/namespaces/ns/services/s"
    assert JOBS.path("ns") == "/apis/batch/v1/namespaces/ns/jobs"
    assert JOBS.path() == "/apis/batch/v1/jobs"
    assert Resource("x/v1", "Pool", "pools", namespaced=False).path("ns", "p", "status") == "/apis/x/v1/pools/p/status"


@pytest.mark.parametrize("code", [0, 429, 500, 503])
def test_what_may_pass_is_tried_again(code):
    server = FakeApiServer()
    server.fail("POST", code, times=2)
    made, answers = with_api(lambda api: api.create(SERVICES, service()), server)
    assert made["metadata"]["name"] == "s"
    assert [answer for _, answer in answers] == [code, code, 201]


def test_retry_after_is_respected():
    server = FakeApiServer()
    server.fail("POST", 429, retry_after="1")

    async def scene(api):
        loop = asyncio.get_running_loop()
        started = loop.time()
        await api.create(SERVICES, service())
        return loop.time() - started

    waited, _ = with_api(scene, server)
    assert waited >= 1


@pytest.mark.parametrize("code", [400, 403, 404, 409, 422])
def test_what_will_not_pass_is_told_at_once(code):
    server = FakeApiServer()
    server.fail("POST", code)

    async def scene(api):
        with pytest.raises(ApiError) as caught:
            await api.create(SERVICES, service())
        return caught.value

    error, answers = with_api(scene, server)
    assert (error.code, error.reason, error.message) == (code, "Injected", "injected")
    assert len(answers) == 1


def test_a_list_comes_in_chunks_and_begins_again_when_it_expires():
    server = FakeApiServer(page=2)
    for number in range(5):
        server.put(f"/api/v1/namespaces/ns/services/s{number}", service(f"s{number}"))
    server.fail("GET", 410)
    listing, answers = with_api(lambda api: api.list(SERVICES, "ns"), server)
    assert [item["metadata"]["name"] for item in listing.items] == ["s0", "s1", "s2", "s3", "s4"]
    assert {item["kind"] for item in listing.items} == {"Service"}
    assert listing.version == 105
    assert [code for _, code in answers] == [410, 200, 200, 200]


def test_a_list_leaves_out_what_nobody_reads():
    server = FakeApiServer()
    owned = service("owned")
    owned["metadata"]["managedFields"] = [{"manager": "somebody"}]
    server.put("/api/v1/namespaces/ns/services/owned", owned)
    listing, _ = with_api(lambda api: api.list(SERVICES, "ns"), server)
    assert "managedFields" not in listing.items[0]["metadata"]


def test_deleting_what_is_gone_is_fine():
    _, answers = with_api(lambda api: api.delete(SERVICES, "ns", "gone"), FakeApiServer())
    assert answers == [("DELETE", 404)]
