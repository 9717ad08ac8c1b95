"""The API client against an API server that fails on cue."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from fake.api_server import FakeApiServer
from trainwright_operator.cluster.client import Api, ApiError, Connection, Resource

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


def test_a_resource_has_the_path_of_its_group_scope_and_subresource():
    assert SERVICES.path("ns", "s") == "/api/v1/namespaces/ns/services/s"
    assert JOBS.path("ns") == "/apis/batch/v1/namespaces/ns/jobs"
    assert JOBS.path() == "/apis/batch/v1/jobs"
    assert Resource("x/v1", "Pool", "pools", namespaced=False).path("ns", "p", "status") == "/apis/x/v1/pools/p/status"


@pytest.mark.parametrize("code", [0, 429, 500, 503])
def test_a_temporary_failure_is_retried(code):
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


def test_an_hour_that_the_server_asks_for_is_not_slept(monkeypatch):
    monkeypatch.setattr("trainwright_operator.cluster.client.PATIENCE_SECONDS", 0.3)
    server = FakeApiServer()
    server.fail("POST", 429, times=10, retry_after="3600")

    async def scene(api):
        with pytest.raises(ApiError, match="429"):
            await asyncio.wait_for(api.create(SERVICES, service()), 60)

    _, answers = with_api(scene, server)
    assert answers == [("POST", 429)] * 2


def test_without_time_to_wait_a_request_is_sent_once():
    server = FakeApiServer()
    server.fail("GET", 503, times=10)

    async def scene(api):
        with pytest.raises(ApiError, match="503"):
            await api.list(SERVICES, "ns", tries=1)

    _, answers = with_api(scene, server)
    assert len(answers) == 1


@pytest.mark.parametrize("code", [400, 403, 404, 409, 422])
def test_a_permanent_failure_is_raised_at_once(code):
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


@asynccontextmanager
async def answering(handle):
    """An API server of one answer, bytes as they are."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with Api(Connection(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", None)) as api:
            yield api
    finally:
        await runner.cleanup()


WHOLE = b'{"type": "ADDED", "object": {"metadata": {"name": "s"}}}\n'


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b'{"type": "ADDED", "obj', id="half a line"),
        pytest.param(b"<html>\n", id="a proxy's page"),
        pytest.param(b"[]\n", id="no event"),
        pytest.param(b"x" * 2**14 + b"\n", id="a line without end"),
    ],
)
def test_a_watch_that_ends_within_a_line_is_a_broken_connection(rest, monkeypatch):
    monkeypatch.setattr("trainwright_operator.cluster.client.LONGEST_LINE", 2**10)

    async def handle(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(WHOLE)
        await response.write(rest)
        return response

    async def scene():
        async with answering(handle) as api:
            watch = api.watch(SERVICES, "ns", "", 1, 5)
            kind, obj = await anext(watch)
            assert (kind, obj["metadata"]["name"]) == ("ADDED", "s")
            with pytest.raises(aiohttp.ClientError):
                await anext(watch)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(b"<html>log in</html>", "502.*<html>log in", id="a proxy's page"),
        pytest.param(b"[1]", "502", id="no object"),
        pytest.param(b'{"kind"', "502", id="half an object"),
    ],
)
def test_an_answer_that_is_no_object_is_an_error_of_the_gateway(text, said):
    async def handle(_):
        return web.Response(body=text)

    async def scene():
        async with answering(handle) as api:
            with pytest.raises(ApiError, match=said):
                await api.list(SERVICES, "ns", tries=1)

    asyncio.run(scene())


def test_an_answer_that_is_cut_off_is_asked_for_again():
    calls = []

    async def handle(request):
        calls.append(request)
        if len(calls) > 1:
            return web.json_response({"metadata": {"name": "s"}})
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"metadata"')
        request.transport.close()
        return response

    async def scene():
        async with answering(handle) as api:
            return await api.get(SERVICES, "ns", "s")

    assert asyncio.run(scene())["metadata"]["name"] == "s"
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("code", "message", "unserved"),
    [
        (404, "404 page not found", True),
        (404, "the server could not find the requested resource", True),
        (404, 'namespaces "x" not found', False),
        (404, 'services "s" not found', False),
        (403, "the server could not find the requested resource", False),
    ],
)
def test_a_kind_that_is_not_served_is_told_from_an_object_that_is_not_there(code, message, unserved):
    error = ApiError(code, "NotFound", message)
    assert error.is_unserved is unserved
    assert error.is_verdict is (unserved or code == 403)


@pytest.mark.parametrize("answer", ["<html>log in</html>", "[]", '"ok"', '{"login": "https://proxy"}'])
def test_a_success_that_is_no_object_of_the_api_is_a_bad_gateway(answer):
    async def handle(request):
        return web.Response(text=answer, content_type="application/json")

    async def scene():
        async with answering(handle) as api:
            with pytest.raises(ApiError, match="502 BadGateway: not a response of an API server"):
                await api.list(SERVICES, "ns", tries=1)

    asyncio.run(scene())


def test_an_object_in_the_place_of_a_list_is_a_bad_gateway():
    async def handle(request):
        return web.json_response({"kind": "Service", "metadata": {"name": "s"}})

    async def scene():
        async with answering(handle) as api:
            with pytest.raises(ApiError, match="502 BadGateway: not a list of services"):
                await api.list(SERVICES, "ns", tries=1)

    asyncio.run(scene())
