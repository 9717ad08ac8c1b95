"""Every kind of pool, by the table: resources, nodes, tolerations and environment of each pod, and what is refused."""

from __future__ import annotations

import pytest

from builders import make_job
from pool_cases import CASES, POOLS, REFUSALS, RESOURCES, WRONG, environment, planned, pool_manifest, pool_of
from scene import Scene
from trainwright.contract import ResolvedJob
from trainwright.launch.rendezvous import Place
from trainwright_operator import __version__
from trainwright_operator.api import crd
from trainwright_operator.core.placement.pools import VENDORS, place
from trainwright_operator.core.placement.vendor import PoolError


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_a_pool_has_a_job_for_each_slice_and_a_pod_for_each_host(case):
    jobs = planned(case)
    assert [job["metadata"]["name"] for job in jobs] == [f"gpt-corpus-{slice_}-1" for slice_ in range(case.jobs)]
    assert sum(job["spec"]["completions"] for job in jobs) == case.pods
    assert all(job["spec"]["parallelism"] == job["spec"]["completions"] for job in jobs)


def test_every_pod_has_the_resources_node_selector_and_tolerations_of_its_pool(case):
    for job in planned(case):
        pod = job["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert container["resources"]["requests"] == case.resources
        assert container["resources"].get("limits", {}) == ({} if "cpu" in case.resources else case.resources)
        assert pod.get("nodeSelector", {}) == case.selector
        tolerated = [one["key"] for one in pod["tolerations"] if "tolerationSeconds" not in one]
        assert tolerated == ([case.toleration] if case.toleration else [])
        assert container["image"] == f"trainwright/trainer:{__version__}-{case.image}"


def test_the_first_and_the_last_pod_have_the_environment_of_their_pool(case):
    first, *_, last = [
        environment(job["spec"]["template"]["spec"], index)
        for job in planned(case)
        for index in range(job["spec"]["completions"])
    ] * 2
    assert case.first.items() <= first.items()
    assert case.last.items() <= last.items()
    assert (first["PET_NPROC_PER_NODE"], first["PET_NNODES"]) == (str(case.ranks), str(case.pods))


def test_every_rank_is_there_once_and_the_trainer_is_told_the_same(case):
    jobs = planned(case)
    places = [
        Place.of(environment(job["spec"]["template"]["spec"], index))
        for job in jobs
        for index in range(job["spec"]["completions"])
    ]
    assert [rank for one in places for rank in one.ranks] == list(range(case.pods * case.ranks))
    for job in jobs:
        annotations = job["spec"]["template"]["metadata"]["annotations"]
        resolved = ResolvedJob.from_json(annotations["trainwright.dev/resolved-job"])
        assert (resolved.nodes, resolved.per_node) == (case.pods, case.ranks)


@pytest.mark.parametrize(("pool", "asked", "words"), REFUSALS.values(), ids=REFUSALS)
def test_a_shape_that_does_not_fit_is_refused_with_the_arithmetic(pool, asked, words):
    job = make_job().with_("spec.accelerator", {"pool": pool, **asked}).build()
    with pytest.raises(PoolError) as refused:
        place(job, pool_of(pool))
    assert str(refused.value) == words


@pytest.mark.parametrize(("resources", "wrong"), RESOURCES.values(), ids=RESOURCES)
def test_resources_that_an_api_server_would_refuse_with_every_job_are_told_before(resources, wrong):
    scene = Scene(make_job().with_("spec.podTemplate", {"resources": resources})).settle()
    if wrong is None:
        assert scene.applied == ["gpt-corpus-0-1"]
        return
    words = f"spec.podTemplate.resources{'' if wrong[0] == ':' else '.'}{wrong}"
    assert (scene.applied, scene.holding(), scene.condition("Stalled")["message"]) == ([], {"Stalled"}, words)
    assert scene.status["display"]["state"] == "Pending (PoolUnusable)"


@pytest.mark.parametrize(("pool", "change", "words"), WRONG.values(), ids=WRONG)
def test_a_pool_that_cannot_be_is_refused(pool, change, words):
    assert [str(one) for one in crd.problems(pool_manifest(pool, **change))] == [words]


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_of_the_table_is_right(name):
    assert crd.problems(pool_manifest(name)) == []


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_vendor_has_a_case(vendor):
    assert any(pool_of(one.pool).vendor == vendor for one in CASES.values())
