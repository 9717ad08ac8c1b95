"""The endpoint's certificate and the leader's mark, against an API server that holds junk or fails."""

import asyncio
import base64
import logging
import socket

import pytest
from aiohttp import web

from fake.api_server import FakeApiServer
from trainwright_operator.cluster import serving
from trainwright_operator.cluster.api import Api
from trainwright_operator.cluster.certificate import Certificates, flaw
from trainwright_operator.cluster.serving import Identity
from trainwright_operator.cluster.settings import Settings

SETTINGS = Settings(operator_namespace="ns", pod_name="operator-0")
SECRET = "/api/v1/namespaces/ns/secrets/trainwright-progress-tls"
POD = "/api/v1/namespaces/ns/pods/operator-0"


def play(scene):
    async def run():
        server = FakeApiServer()
        async with server.serve() as connection, Api(connection) as api:
            await scene(server, api)

    asyncio.run(run())


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
        assert identity.authority == kept.authority.decode()
        await identity.load()
        assert server.requests["PATCH", "secrets"] == 1

    play(scene)
    told = [
        f"Secret trainwright-progress-tls of namespace ns: {part} is no PEM of a certificate; it is filled anew"
        for part in lines
    ]
    assert [record.getMessage() for record in caplog.records] == told


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
