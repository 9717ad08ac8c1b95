"""The endpoint's certificate and the leader's mark, against an API server that holds junk or fails."""

import asyncio
import base64
import dataclasses
import logging
import socket

import pytest
from aiohttp import web

from fake.api_server import play
from integration.operators import free_port
from trainwright_operator.cluster import serving
from trainwright_operator.cluster.certificate import Certificates, flaw
from trainwright_operator.cluster.serving import Identity
from trainwright_operator.cluster.settings import Settings

SETTINGS = Settings(operator_namespace="ns", pod_name="operator-0")
SECRET = "/api/v1/namespaces/ns/secrets/trainwright-progress-tls"
POD = "/api/v1/namespaces/ns/pods/operator-0"


def told(identity):
    """The authority that a pod is to trust; None when it is told of no endpoint."""
    endpoint = identity.endpoint(("ns", "gpt"))
    return endpoint.ca if endpoint else None


def stored(server):
    return Certificates.from_secret_data(server.objects[SECRET]["data"])


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        pytest.param({}, [], id="empty"),
        pytest.param({"ca.crt": "%", "ca.key": "%", "tls.crt": "%", "tls.key": "%"}, ["ca.crt"], id="no base64"),
        pytest.param(
            dict.fromkeys(("ca.crt", "ca.key", "tls.crt", "tls.key"), base64.b64encode(b"hello").decode()),
            ["ca.crt"],
            id="no PEM",
        ),
    ],
)
def test_a_secret_of_junk_is_filled_anew_and_told_in_one_line(data, lines, caplog):
    caplog.set_level(logging.INFO, serving.logger.name)

    async def scene(server, api):
        server.put(SECRET, {"metadata": {"name": "trainwright-progress-tls"}, "data": data})
        identity = Identity(api, SETTINGS)
        await identity.load()
        kept = Certificates.from_secret_data(server.objects[SECRET]["data"])
        assert flaw(kept) == ""
        assert told(identity) == kept.authority.decode()
        await identity.load()
        assert server.requests["PATCH", "secrets"] == 1

    play(scene)
    expected = [
        f"Secret trainwright-progress-tls of namespace ns: {part} is no PEM of a certificate; writing new certificates"
        for part in lines
    ]
    assert [record.getMessage() for record in caplog.records] == expected


def test_a_secret_that_is_not_there_is_made_and_one_that_is_lost_is_made_again_as_it_was():
    async def scene(server, api):
        identity = Identity(api, SETTINGS)
        assert await identity.load()
        first = stored(server)
        assert flaw(first) == ""
        assert told(identity) == first.authority.decode()
        del server.objects[SECRET]
        assert await identity.load()
        assert stored(server) == first, "pods at work trust this authority and no other"
        server.objects[SECRET]["data"]["ca.key"] = "eA=="
        assert await identity.load()
        assert stored(server) == first

    play(scene)


REFUSALS = {"it may not be read": ("GET", 403), "it may not be made": ("PATCH", 403), "a conflict": ("PATCH", 409)}


@pytest.mark.parametrize(("verb", "code"), REFUSALS.values(), ids=REFUSALS)
def test_without_the_secret_all_else_goes_on_and_the_endpoint_follows_when_it_may(verb, code, monkeypatch, caplog):
    """Refused once at the start and once more; then the reason is mended."""
    monkeypatch.setattr(serving, "AGAIN_SECONDS", 0.05)
    caplog.set_level(logging.WARNING, serving.logger.name)
    served = asyncio.Queue()

    async def scene(server, api):
        server.fail(verb, code, times=2, path="/secrets/")
        identity = Identity(api, dataclasses.replace(SETTINGS, progress_port=free_port()))
        assert not await identity.load()
        assert told(identity) is None
        assert f"{code} Injected: injected" in identity.trouble
        serve = asyncio.create_task(identity.serve(web.Application, served.put_nowait))
        assert await asyncio.wait_for(served.get(), 10)
        assert (identity.trouble, told(identity)) == ("", stored(server).authority.decode())
        serve.cancel()
        await asyncio.gather(serve, return_exceptions=True)
        assert served.get_nowait() is False

    play(scene)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        "progress is not served, and jobs show no steps before they end: Secret trainwright-progress-tls of namespace "
        f"ns: {code} Injected: injected; retrying"
    )


def test_a_taken_port_is_told_and_waited_for(monkeypatch):
    monkeypatch.setattr(serving, "AGAIN_SECONDS", 0.05)
    served = asyncio.Queue()

    async def scene(server, api):
        with socket.socket() as other:
            other.bind(("0.0.0.0", 0))
            other.listen()
            port = other.getsockname()[1]
            identity = Identity(api, dataclasses.replace(SETTINGS, progress_port=port))
            serve = asyncio.create_task(identity.serve(web.Application, served.put_nowait))
            while not identity.trouble:
                await asyncio.sleep(0.01)
            assert f"port {port}: " in identity.trouble
            assert served.empty()
        assert await asyncio.wait_for(served.get(), 10)
        assert identity.trouble == ""
        serve.cancel()

    play(scene)


def test_a_certificate_that_is_served_is_served_on_when_it_cannot_be_looked_at():
    async def scene(server, api):
        identity = Identity(api, SETTINGS)
        await identity.load()
        server.fail("GET", 403, path="/secrets/")
        assert await identity.load()
        assert identity.trouble.startswith("the certificate of progress is not renewed: Secret ")
        assert told(identity)
        await identity.load()
        assert identity.trouble == ""

    play(scene)


def test_a_connection_that_brings_nothing_is_closed_and_holds_up_no_end(monkeypatch):
    monkeypatch.setattr(serving, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(serving, "LAST_SECONDS", 0.1)
    stuck = asyncio.Event()

    async def never(request):
        stuck.set()
        await request.read()

    async def run():
        app = web.Application()
        app.router.add_post("/", never)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        async with serving.serving(app, port):
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            idle[1][1].write(b"POST / HTTP/1.1\r\nHost: x\r\nX-Slo")
            for reader, _ in idle:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            await stuck.wait()
            before = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - before < 5

    asyncio.run(run())
