"""Elastic jobs: with how many nodes an attempt starts, and when it is given up for a smaller one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import JobBuilder, make_job
from pool_cases import pool_manifest
from scene import Scene
from trainwright.contract import ResolvedJob
from trainwright_operator.api.spec import AcceleratorPool, SpecError, parse_pool
from trainwright_operator.cluster.informer import owner_of
from trainwright_operator.core import elastic
from trainwright_operator.core.children import children
from trainwright_operator.core.gangs import Gangs, Kai, OneByOne, PodGroup, Volcano
from trainwright_operator.core.observe import Observed, Probe, observe
from trainwright_operator.core.placement.pools import BUILTIN, place
from trainwright_operator.core.placement.vendor import PoolError
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.queues import kueue
from trainwright_operator.core.queues.workload import Flavor, Workload
from trainwright_operator.core.times import write_time

POOL = AcceleratorPool("cpu", "cpu")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(nodes: int = 4, least: int = 2, accumulation: int = 3, **more: Any) -> JobBuilder:
    made = make_job().nodes(nodes).with_("spec.accelerator.minNodes", least)
    return made.training(gradientAccumulationSteps=accumulation, **more)


@pytest.mark.parametrize(
    ("nodes", "least", "accumulation", "sizes"),
    [(4, 2, 3, (4, 3, 2)), (4, 1, 1, (4, 2, 1)), (8, 4, 1, (8, 4)), (6, 2, 2, (6, 4, 3, 2)), (3, 3, 1, (3,))],
)
def test_the_sizes_are_those_at_which_the_global_batch_divides(nodes, least, accumulation, sizes):
    built = job(nodes, least, accumulation).build()
    assert elastic.sizes(built) == sizes
    for size in sizes:
        steps = elastic.sized(built, size).spec.training_arguments["gradient_accumulation_steps"]
        assert steps * size == nodes * accumulation, "the micro-batches of a step"


REFUSED = {
    "no size": (job(4, 3, 1), "gradientAccumulationSteps: 3 allows 3"),
    "full determinism": (job(fullDeterminism=True), "full determinism"),
    "split batches": (job(acceleratorConfig={"split_batches": True}), "split_batches"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_that_cannot_be_elastic_is_refused_with_the_fix(case):
    made, words = REFUSED[case]
    with pytest.raises(PoolError, match=words) as error:
        place(made.build(), POOL)
    assert error.value.path == "spec.accelerator.minNodes"


def test_a_slice_of_tpus_has_a_fixed_number_of_hosts():
    made = make_job().with_("spec.accelerator", {"pool": "v6e-16", "nodes": 4, "minNodes": 2})
    with pytest.raises(PoolError, match="a TPU slice has a fixed number of hosts"):
        place(made.build(), parse_pool(pool_manifest("v6e-16")))


@pytest.mark.parametrize(
    "accelerator", [{"nodes": 2, "minNodes": 3}, {"minNodes": 1}, {"nodes": 2, "elasticTimeoutSeconds": 9}]
)
def test_fields_that_contradict_each_other_are_invalid(accelerator):
    with pytest.raises(SpecError, match=r"spec\.accelerator"):
        make_job().with_("spec.accelerator", accelerator).build()


class Cluster(Scene):
    """One that starts each pod by itself, with room for some."""

    gangs = Gangs((OneByOne(timeout=timedelta(seconds=60)),))

    def plan(self):
        return plan(self.job, self.pool, self.observed(), self.now, gangs=self.gangs)

    def room_for(self, count: int) -> Cluster:
        newest = max(self.objects.jobs, key=lambda name: int(name.rsplit("-", 1)[1]))
        for number, name in enumerate(name for name in self.objects.pods if name.startswith(newest)):
            pod = self.objects.pods[name]
            if pod["status"]["phase"] == "Pending" and number < count:
                self.objects.started(name, self.now)
                pod["status"]["conditions"][0]["lastTransitionTime"] = write_time(self.now)
            elif pod["status"]["phase"] == "Pending":
                waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
                pod["status"]["conditions"] = [waits]
        return self

    def size(self) -> tuple[int, int]:
        """Nodes and accumulation of the newest attempt, as its pods read them."""
        newest = max(self.objects.jobs, key=lambda name: int(name.rsplit("-", 1)[1]))
        made = self.objects.jobs[newest]["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"]
        resolved = ResolvedJob.from_json(made)
        assert self.objects.jobs[newest]["spec"]["completions"] == resolved.nodes
        return resolved.nodes, resolved.training_arguments["gradient_accumulation_steps"]


def shrunk(found: int, seconds: int = 301) -> Cluster:
    scene = Cluster(job()).settle().room_for(found).settle().wait(seconds).settle()
    scene.exit_all(143).settle()
    return scene


@pytest.mark.parametrize(("found", "size"), [(3, (3, 4)), (2, (2, 6)), (1, (2, 6)), (0, (3, 4))])
def test_an_attempt_without_room_for_all_becomes_one_of_the_largest_size_that_has(found, size):
    scene = shrunk(found)
    assert scene.size() == size
    first, second = scene.status["attempts"]
    assert (first["reason"], first["nodes"], first["nextNodes"]) == ("Shrunk", 4, size[0])
    assert second["nodes"] == size[0]
    assert scene.status["restarts"]["counted"] == 0
    scene.room_for(4).settle()
    assert scene.state == "Running"
    assert scene.status["nodes"]["desired"] == size[0]


def test_the_smallest_size_waits_for_room_as_long_as_it_takes():
    scene = shrunk(2)
    scene.room_for(0).settle().wait(3600).settle()
    assert (scene.state, scene.size()) == ("Queued", (2, 6))


def test_an_attempt_that_fills_up_in_time_or_has_trained_is_not_given_up():
    scene = Cluster(job()).settle().room_for(3).settle().wait(200).settle().room_for(4).settle()
    assert scene.state == "Running"
    scene.wait(4000).settle()
    assert scene.deleted == []


def test_the_timeout_is_that_of_the_job():
    made = job().with_("spec.accelerator.elasticTimeoutSeconds", 10)
    scene = Cluster(made).settle().room_for(3).settle().wait(9).settle()
    assert scene.deleted == []
    scene.wait(2).settle()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]


@pytest.mark.parametrize(("lasted", "nodes"), [(60, 3), (3600, 4)])
def test_after_a_while_the_whole_size_is_tried_again(lasted, nodes):
    scene = shrunk(3).room_for(4).settle().wait(lasted).settle()
    scene.exit(0, 1).settle().exit_all(143).settle().wait(20).settle()
    assert scene.size()[0] == nodes


def test_the_account_counts_the_accelerators_that_the_attempt_has():
    scene = Cluster(job(), AcceleratorPool("h100", "nvidia")).settle().room_for(3).settle().wait(301).settle()
    scene.exit_all(143).settle().room_for(4).settle()
    before = scene.status["acceleratorSeconds"]
    scene.wait(100).exit_all(1).settle()
    assert scene.status["acceleratorSeconds"] - before == 300


def test_planning_again_changes_nothing():
    scene = shrunk(3)
    before = json.dumps(scene.status)
    scene.settle()
    assert json.dumps(scene.status) == before


@pytest.mark.parametrize("scheduler", [PodGroup("scheduling.k8s.io/v1beta1"), Volcano("v"), Kai("k")])
def test_a_gang_scheduler_places_the_smallest_size_or_nothing(scheduler):
    built = job().build()
    found = children(built, place(built, BUILTIN["cpu"]), 1, scheduler=scheduler)
    (group,) = [child for child in found if child["kind"] == "PodGroup"]
    assert 2 in (
        group["spec"].get("minMember"),
        group["spec"].get("schedulingPolicy", {}).get("gang", {}).get("minCount"),
    )


@pytest.mark.parametrize(("admitted", "size"), [(4, (4, 3)), (3, (3, 4)), (2, (2, 6))])
def test_kueue_may_admit_fewer_pods_and_the_attempt_has_as_many(admitted, size):
    built = replace(job().build(), labels={kueue.LABEL_QUEUE: "team"}, uid="0123456789")
    made = kueue.workload(built, place(built, POOL), kueue.Queue())
    assert (made["spec"]["podSets"][0]["count"], made["spec"]["podSets"][0]["minCount"]) == (4, 2)
    holds = [{"type": kind, "status": "True", "reason": "R", "message": ""} for kind in ("QuotaReserved", "Admitted")]
    assigned = {"name": "main", "count": admitted, "flavors": {"cpu": "spot"}}
    made["status"] = {"conditions": holds, "admission": {"clusterQueue": "cq", "podSetAssignments": [assigned]}}
    queue = kueue.Queue(Workload(made), {"spot": Flavor()})
    planned = plan(built, POOL, Observed(), NOW, queue=queue)
    started = planned.apply[-1]
    resolved = ResolvedJob.from_json(
        started["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"]
    )
    assert (started["spec"]["completions"], resolved.training_arguments["gradient_accumulation_steps"]) == size
    assert planned.status["attempts"][0]["nodes"] == size[0]


# Growing


def on_three() -> Cluster:
    """A job of four nodes that has trained on three for longer than twice its timeout."""
    scene = shrunk(3).room_for(4).settle()
    return scene.wait(601)


def on_two_of_four() -> Cluster:
    """With one micro-batch a step three nodes do not divide it, so one pod more is no reason to stop."""
    scene = Cluster(job(accumulation=1)).settle().room_for(2).settle().wait(301).settle()
    scene.exit_all(143).settle()
    return scene.room_for(4).settle().wait(601)


def seen(scene: Cluster, probe: Probe | None) -> Plan:
    observed = replace(scene.observed(), probe=probe)
    return plan(scene.job, scene.pool, observed, scene.now, gangs=scene.gangs)


def test_a_smaller_attempt_is_joined_by_a_probe_of_as_many_pods_as_are_missing():
    scene = shrunk(3).room_for(4).settle()
    early = scene.wait(500).plan()
    assert early.probe == ()
    assert early.requeue_after <= 101, "it looks again when one is due"
    (made,) = scene.wait(101).plan().probe
    assert (made["spec"]["parallelism"], made["metadata"]["name"]) == (1, "gpt-corpus-probe")
    assert made["metadata"]["labels"]["trainwright.dev/probe"] == "gpt-corpus"
    assert "trainwright.dev/job" not in made["spec"]["template"]["metadata"]["labels"], "it is none of the job's pods"
    container = made["spec"]["template"]["spec"]["containers"][0]
    (trainer,) = (
        one
        for one in scene.objects.jobs["gpt-corpus-0-2"]["spec"]["template"]["spec"]["containers"]
        if one["name"] == "trainer"
    )
    assert container.get("resources") == trainer.get("resources")
    assert seen(scene, Probe()).probe == (), "one is enough"


def test_an_attempt_stops_to_grow_when_the_probe_has_kept_room_for_a_while():
    scene = on_three()
    soon = seen(scene, Probe(1, scene.now - timedelta(seconds=29)))
    assert (soon.delete, soon.status["state"]) == ((), "Running")
    assert soon.requeue_after <= 1
    grows = seen(scene, Probe(1, scene.now - timedelta(seconds=30)))
    assert grows.status["state"] == "Stopping"
    assert [gone.name for gone in grows.delete] == ["gpt-corpus-0-2", "gpt-corpus-probe"]
    scene.status = grows.status
    scene.objects.delete_job("gpt-corpus-0-2", scene.now)
    scene.settle().exit_all(143).settle()
    assert scene.size() == (4, 3)
    last, newest = scene.status["attempts"][-2:]
    assert (last["outcome"], last["reason"], last["nextNodes"], newest["nodes"]) == ("Stopped", "Grown", 4, 4)
    assert scene.status["restarts"]["counted"] == 0


@pytest.mark.parametrize("why", ["no room", "no size", "suspended"])
def test_an_attempt_that_cannot_grow_does_not_stop_for_it(why):
    scene = on_two_of_four() if why == "no size" else on_three()
    if why == "suspended":
        scene.edit("spec.suspend", True)
    planned = seen(scene, Probe(0 if why == "no room" else 1, scene.now - timedelta(hours=1)))
    assert planned.status["state"] == ("Stopping" if why == "suspended" else "Running")
    assert ("gpt-corpus-probe" in [gone.name for gone in planned.delete]) == (why == "suspended")


def test_an_attempt_of_all_nodes_has_no_probe():
    scene = Cluster(job()).settle().room_for(4).settle().wait(3600)
    assert scene.plan().probe == ()
    assert scene.plan().requeue_after is None


def test_the_probe_is_told_from_the_pods_of_the_job():
    scene = on_three()
    (made,) = scene.plan().probe
    owned = {"kind": "Job", "name": made["metadata"]["name"], "uid": "p", "controller": True}
    labels = made["metadata"]["labels"]
    placed = {
        "metadata": {
            "name": "gpt-corpus-probe-x",
            "namespace": "default",
            "labels": labels,
            "ownerReferences": [owned],
        },
        "spec": {"nodeName": "n"},
        "status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": write_time(NOW)}]},
    }
    stored = {**made, "metadata": {**made["metadata"], "uid": "p"}}
    jobs, pods = [*scene.objects.jobs.values(), stored], [*scene.objects.pods.values(), placed]
    observed = observe(scene.job, jobs, pods)
    assert observed.probe == Probe(1, NOW)
    assert observed.attempts == scene.observed().attempts
    assert owner_of(placed) == ("default", "gpt-corpus")
