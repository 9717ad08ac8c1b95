"""The watch of pods, over an API server's answers by script: nothing is missed, and nothing is hammered."""

import asyncio
import itertools
from contextlib import suppress

import aiohttp
import pytest

from fake import virtual_time
from trainwright_operator.cluster.client import ApiError, Listing
from trainwright_operator.cluster.controller import LONGEST_DELAY, Controller
from trainwright_operator.cluster.informer import Stores
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.resources import PODS, QUEUED
from trainwright_operator.cluster.settings import Settings

BROKEN = aiohttp.ClientPayloadError("cut off")
UNSERVED = ApiError(404, "NotFound", "404 page not found")
EXPIRED = ApiError(410, "Expired", "too old resource version")


def pod(name, version):
    labels = {"trainwright.dev/job": "train"}
    return {"metadata": {"namespace": "default", "name": name, "labels": labels, "resourceVersion": str(version)}}


class Script:
    """Answers each watch of pods with the next of ``watches``: events, and at the end an error, or nothing."""

    def __init__(self, watches, pods=(), version=10):
        self.watches, self.pods, self.version = list(watches), pods, version
        self.asked, self.lists = [], 0

    async def list(self, resource, namespace=None, selector="", **_):
        if resource is not PODS:
            return Listing([], self.version)
        self.lists += 1
        return Listing(list(self.pods), self.version)

    async def watch(self, resource, namespace, selector, version, seconds):
        if resource is not PODS or not self.watches:
            await asyncio.sleep(10**6)
        self.asked.append((asyncio.get_running_loop().time(), version))
        for one in self.watches.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one


def followed(script, seconds=300):
    """The names of the pods that are known after some time."""

    async def scene():
        stores = Stores()
        controller = Controller(script, stores, None, Settings(("default",), relist_interval=10**6), Metrics())
        await controller.prime()
        running = asyncio.create_task(controller._follow((PODS, "default"), controller._primed[PODS, "default"]))
        await asyncio.sleep(seconds)
        assert not running.done()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return sorted(one["metadata"]["name"] for one in stores.pods)

    return virtual_time.run(scene())


def versions(script):
    return [version for _, version in script.asked]


@pytest.mark.parametrize(
    "end", [[], [BROKEN], [TimeoutError()], [UNSERVED]], ids=["ended", "broken", "silent", "not served"]
)
def test_a_watch_goes_on_from_the_last_change_that_it_saw(end):
    first = [("ADDED", pod("a", 11)), ("ADDED", pod("b", 12)), *end]
    script = Script([first, [("DELETED", pod("a", 13))]])
    assert followed(script) == ["b"]
    assert versions(script) == [10, 12]
    assert script.lists == 1


def test_a_bookmark_is_where_a_watch_without_changes_goes_on():
    script = Script([[("BOOKMARK", {"metadata": {"resourceVersion": "90"}})], [("ADDED", pod("a", 91))]])
    assert followed(script) == ["a"]
    assert versions(script) == [10, 90]


def test_what_happened_before_an_expired_version_is_found_by_a_list():
    script = Script([[EXPIRED], [("ADDED", pod("c", 31))]], pods=[pod("a", 5), pod("b", 6)])

    def gone(*asked, list_pods=script.list, **named):
        if script.asked:
            script.pods, script.version = [pod("b", 6)], 30
        return list_pods(*asked, **named)

    script.list = gone
    assert followed(script) == ["b", "c"]
    assert versions(script) == [10, 30]


def test_an_api_server_that_is_away_is_asked_less_and_less_often():
    script = Script([[BROKEN] for _ in range(9)] + [[("ADDED", pod("a", 11)), BROKEN], []])
    followed(script, 300)
    times = [at for at, _ in script.asked]
    waits = [round(after - before) for before, after in itertools.pairwise(times)]
    assert waits == [1, 2, 4, 8, 16, *[round(LONGEST_DELAY)] * 4, 1]


def test_watches_that_end_at_once_are_not_opened_in_a_hot_loop():
    script = Script([[] for _ in range(1000)])
    followed(script, 60)
    assert len(script.asked) <= 61


def test_kinds_that_may_be_removed_are_not_watched_by_kopf_which_would_end():
    controller = Controller(Script([]), Stores(), None, Settings(), Metrics(), places=object())
    assert set(QUEUED) <= set(controller.watched)
    assert not set(QUEUED) & set(controller.watched_by_kopf)
