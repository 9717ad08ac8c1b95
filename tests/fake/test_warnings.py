"""Warnings are read once for all that wait in a namespace, and again only when they have grown old."""

import asyncio

from fake.api_server import FakeApiServer
from trainwright_operator.cluster.api import Api
from trainwright_operator.cluster.warnings import Warnings

EVENTS = "/api/v1/namespaces/default/events"


def warning(name, message, **fields):
    return {"type": "Warning", "message": message, "metadata": {"name": name}} | fields


def test_many_that_wait_share_one_list():
    async def scene():
        server = FakeApiServer()
        for number in range(3):
            involved = {"kind": "Pod", "name": f"pod-{number}"}
            server.put(f"{EVENTS}/e{number}", warning(f"e{number}", f"no volume {number}", involvedObject=involved))
        async with server.serve() as connection, Api(connection) as api:
            warnings = Warnings(api)
            told = await asyncio.gather(*(warnings.about("default", "Pod", f"pod-{number}") for number in range(50)))
            assert [[event["message"] for event in events] for events in told[:4]] == [
                ["no volume 0"],
                ["no volume 1"],
                ["no volume 2"],
                [],
            ]
            assert server.requests["GET", "events"] == 1

    asyncio.run(scene())


def test_a_list_grows_old_and_is_not_kept(monkeypatch):
    monkeypatch.setattr("trainwright_operator.cluster.warnings.FRESH_SECONDS", 0.05)
    monkeypatch.setattr("trainwright_operator.cluster.warnings.SHARE", 0)

    async def scene():
        server = FakeApiServer()
        async with server.serve() as connection, Api(connection) as api:
            warnings = Warnings(api)
            assert await warnings.about("default", "Pod", "pod") == []
            involved = {"kind": "Pod", "name": "pod"}
            server.put(f"{EVENTS}/e", warning("e", "no volume", involvedObject=involved))
            await asyncio.sleep(0.1)
            assert not warnings._namespaces
            assert [event["message"] for event in await warnings.about("default", "Pod", "pod")] == ["no volume"]

    asyncio.run(scene())
