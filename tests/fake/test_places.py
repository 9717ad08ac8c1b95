"""The places of waiting jobs, from a visibility API that is served, fails, or is not there."""

import pytest

from fake.api_server import play
from trainwright_operator.cluster.places import LOOK_SECONDS, UNSERVED_SECONDS, Places
from trainwright_operator.core.queues.workload import places_path

PATH = places_path("default", "team")


def workload(name, **conditions):
    found = [{"type": kind, "status": status} for kind, status in conditions.items()]
    meta = {"namespace": "default", "name": f"w-{name}", "labels": {"trainwright.dev/job": name}}
    return {"metadata": meta, "spec": {"queueName": "team"}, "status": {"conditions": found}}


def answer(**places):
    items = [
        {"metadata": {"name": f"w-{name}"}, "positionInLocalQueue": 0, "positionInClusterQueue": place - 1}
        for name, place in places.items()
    ]
    return {"metadata": {}, "items": items}


def test_only_jobs_whose_place_has_changed_are_looked_at_again():
    async def scene(server, api):
        places = Places(api, [workload("first"), workload("second"), workload("late"), workload("new")])
        server.put(PATH, answer(first=1, second=2, late=11))
        assert await places.look() == [("default", "first"), ("default", "second")]
        assert [places.of("default", f"w-{name}") for name in ("first", "second", "late", "new")] == [1, 2, None, None]
        assert await places.look() == []
        server.put(PATH, answer(second=2, late=3))
        assert await places.look() == [("default", "first"), ("default", "late")]

    play(scene)


def test_nothing_is_asked_while_no_job_waits():
    async def scene(server, api):
        places = Places(api, [workload("admitted", QuotaReserved="True"), workload("ended", Finished="True")])
        assert await places.look() == []
        assert not server.requests

    play(scene)


@pytest.mark.parametrize(("code", "message", "interval"), [
    (404, "404 page not found", UNSERVED_SECONDS),
    (403, "forbidden", UNSERVED_SECONDS),
    (409, "a fault that passes", LOOK_SECONDS),
])  # fmt: skip
def test_places_that_cannot_be_read_are_not_shown_any_more(code, message, interval):
    async def scene(server, api):
        places = Places(api, [workload("first")])
        server.put(PATH, answer(first=1))
        await places.look()
        server.fail("GET", code, message=message)
        assert await places.look() == [("default", "first")]
        assert places.of("default", "w-first") is None
        assert places.interval == interval
        assert await places.look() == [("default", "first")]
        assert (places.of("default", "w-first"), places.interval) == (1, LOOK_SECONDS)

    play(scene)


def test_a_queue_that_does_not_exist_hides_no_place_of_another():
    async def scene(server, api):
        server.put(PATH, answer(first=1))
        lost = workload("lost")
        lost["spec"]["queueName"] = "nowhere"
        places = Places(api, [workload("first"), lost])
        server.fail("GET", 404, path="nowhere", message='localqueues "nowhere" not found')
        assert await places.look() == [("default", "first")]

    play(scene)
