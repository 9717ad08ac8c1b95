"""Warnings are read once for all that wait in a namespace, and again only when they have grown old."""

import asyncio
import logging

import pytest

from fake.api_server import FakeApiServer
from trainwright_operator.cluster import events_reader
from trainwright_operator.cluster.client import Api
from trainwright_operator.cluster.events_reader import Warnings

EVENTS = "/api/v1/namespaces/default/events"


def pod(name, namespace="default", uid="new"):
    return {"metadata": {"namespace": namespace, "name": name, "uid": uid}}


def warned(server, number, name, message, **involved):
    involved = {"kind": "Pod", "name": name} | involved
    event = {"type": "Warning", "message": message, "metadata": {"name": f"e{number}"}, "involvedObject": involved}
    server.put(f"{EVENTS}/e{number}", event)


def messages(events):
    return [event["message"] for event in events]


def play(scene):
    async def run():
        server = FakeApiServer()
        async with server.serve() as connection, Api(connection) as api:
            await scene(server, Warnings(api))

    asyncio.run(run())


def test_many_that_wait_share_one_list():
    async def scene(server, told):
        for number in range(3):
            warned(server, number, f"pod-{number}", f"no volume {number}")
        found = await asyncio.gather(*(told.about("Pod", pod(f"pod-{number}")) for number in range(50)))
        assert [messages(events) for events in found[:4]] == [["no volume 0"], ["no volume 1"], ["no volume 2"], []]
        assert server.requests["GET", "events"] == 1

    play(scene)


def test_a_list_grows_old_and_is_not_kept(monkeypatch):
    monkeypatch.setattr(events_reader, "FRESH_SECONDS", 0.05)
    monkeypatch.setattr(events_reader, "SHARE", 0)

    async def scene(server, told):
        assert await told.about("Pod", pod("pod")) == []
        warned(server, 1, "pod", "no volume")
        await asyncio.sleep(0.1)
        assert not told._namespaces
        assert messages(await told.about("Pod", pod("pod"))) == ["no volume"]

    play(scene)


def test_what_was_said_of_a_former_object_of_that_name_is_not_told():
    async def scene(server, told):
        warned(server, 1, "pod", "of the former", uid="old")
        warned(server, 2, "pod", "of this one", uid="new")
        warned(server, 3, "pod", "of nobody in particular")
        assert messages(await told.about("Pod", pod("pod"))) == ["of this one", "of nobody in particular"]

    play(scene)


@pytest.mark.parametrize(("code", "lists"), [(403, 1), (429, 1), (500, 1), (0, 2)])  # aiohttp asks twice by itself
def test_one_list_that_fails_is_enough_for_a_while_and_one_line_is(code, lists, caplog, monkeypatch):
    caplog.set_level(logging.INFO, events_reader.logger.name)

    async def scene(server, told):
        server.fail("GET", code, times=100, path="/events")
        found = await asyncio.gather(*(told.about("Pod", pod(f"pod-{number}")) for number in range(50)))
        assert found == [[]] * 50
        assert server.requests["GET", "events"] == lists
        monkeypatch.setattr(events_reader, "FAILED_SECONDS", 0)
        for _ in range(3):
            told._namespaces.clear()
            assert await told.about("Pod", pod("pod")) == []
        assert len(caplog.records) == 1
        server.faults.clear()
        warned(server, 1, "pod", "no volume")
        await told.about("Pod", pod("pod", namespace="other"))
        told._namespaces.clear()
        assert messages(await told.about("Pod", pod("pod"))) == ["no volume"]

    play(scene)
    assert [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records] == [
        ("WARNING", "Events of namespace default not read; the status of waiting pods is less precise"),
        ("INFO", "Events of namespace default are read again"),
    ]


def test_a_list_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(events_reader, "PATIENCE_SECONDS", 0.1)

    async def scene(server, told):
        never = asyncio.Event()
        server._answer = lambda _: never.wait()
        assert await asyncio.wait_for(told.about("Pod", pod("pod")), 20) == []
        never.set()

    play(scene)
