"""What a cluster serves decides how gangs start, and in which version their objects are written and deleted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from builders import make_job
from trainwright_operator.cluster import resources
from trainwright_operator.cluster.resources import LOOK_AGAIN, Queues, find_gangs, find_queues, resource_of, unserved
from trainwright_operator.core.gangs import Gangs, OneByOne, PodGroup
from trainwright_operator.core.queues import workload

NEWEST, OLDER = PodGroup.KIND.versions


class Cluster:
    """Answers the one question of the discovery."""

    def __init__(self, **served):
        self.served = served

    async def kinds(self, version):
        return self.served.get(version, set())

    async def versions(self, group):
        return tuple(version.partition("/")[2] for version in self.served if version.startswith(f"{group}/"))


def found(**served) -> Gangs:
    return asyncio.run(find_gangs(Cluster(**served), 60))


@pytest.mark.parametrize(
    ("served", "version"),
    [
        ({NEWEST: {"PodGroup"}, OLDER: {"PodGroup"}}, NEWEST),
        ({OLDER: {"PodGroup"}}, OLDER),
        ({NEWEST: {"Workload"}}, None),
        ({}, None),
    ],
    ids=["both versions", "the older one", "another kind of the group", "nothing"],
)
def test_the_newest_served_version_of_the_scheduler_is_used(served, version):
    scheduler = found(**served).of(make_job().nodes(2).build())
    assert (type(scheduler), scheduler.version) == (PodGroup if version else OneByOne, version)
    assert scheduler.timeout == timedelta(seconds=60)


def test_a_job_that_names_a_scheduler_brings_what_it_needs_itself():
    job = make_job().nodes(2).with_("spec.podTemplate.schedulerName", "volcano").build()
    assert isinstance(found(**{NEWEST: {"PodGroup"}}).of(job), OneByOne)


def test_objects_of_gangs_go_by_the_version_that_is_served():
    assert resource_of(NEWEST, "PodGroup", found(**{OLDER: {"PodGroup"}})).api_version == OLDER
    gone = resource_of(NEWEST, "PodGroup", found())
    assert gone.path("default", "tj-gpt-1") == f"/apis/{NEWEST}/namespaces/default/podgroups/tj-gpt-1"
    assert "restart the operator" in unserved(gone)
    assert resource_of("batch/v1", "Job", found()).plural == "jobs"


def test_an_api_of_kueue_that_is_removed_holds_jobs_until_it_is_back(monkeypatch):
    async def scene():
        queues = Queues(followed=True)
        assert await queues.still(Cluster()) is queues, "it is asked only when a Workload is missing"
        assert (await queues.still(Cluster(**{workload.VERSION: {"Workload"}}), lost=True)).trouble == ""
        gone = await queues.still(Cluster(), lost=True)
        assert "install Kueue again" in gone.trouble
        back = Cluster(**{workload.VERSION: {"Workload"}})
        assert (await gone.still(back)) is gone, "not more often than every half minute"
        monkeypatch.setattr(resources.time, "monotonic", lambda: gone.looked + LOOK_AGAIN)
        assert (await gone.still(back)).trouble == ""

    asyncio.run(scene())


@pytest.mark.parametrize("wanted", ["auto", "on"])
def test_a_kueue_of_another_version_is_named_and_starts_nothing_without_quota(wanted):
    older = Cluster(**{"kueue.x-k8s.io/v1beta1": {"Workload"}})
    queues = asyncio.run(find_queues(older, wanted, ()))
    assert not queues.followed
    assert "serves kueue.x-k8s.io as v1beta1, and this operator needs v1beta2" in queues.trouble


def test_without_kueue_a_job_in_a_queue_starts_unless_kueue_is_demanded():
    assert asyncio.run(find_queues(Cluster(), "auto", ())).trouble == ""
    assert "install Kueue 0.15 or newer" in asyncio.run(find_queues(Cluster(), "on", ())).trouble
