"""Pods that start together: the group that the scheduler sees, a part that is given up, slices that belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from builders import make_job
from pool_cases import pool_manifest
from scene import Scene
from trainwright_operator.api.spec import parse_pool
from trainwright_operator.core.children import beside, children
from trainwright_operator.core.gangs import Gangs, GangScheduler, Kai, OneByOne, PodGroup, Volcano
from trainwright_operator.core.gangs.gang import Membership, jitter
from trainwright_operator.core.placement.pools import BUILTIN, place
from trainwright_operator.core.plan import plan
from trainwright_operator.core.times import write_time
from trainwright_operator.core.waiting import Hold

GANGS = Gangs((PodGroup("scheduling.k8s.io/v1beta1"), OneByOne()))
TWO_SLICES = parse_pool(pool_manifest("v6e-2x16"))
ON_TWO_SLICES = make_job().with_("spec.accelerator.pool", "v6e-2x16")


def planned(job, pool=BUILTIN["cpu"], gangs=GANGS):
    built = job.build()
    return {
        child["metadata"]["name"]: child
        for child in children(built, place(built, pool), 3, scheduler=gangs and gangs.of(built))
    }


def pod_of(child):
    return child["spec"]["template"]["spec"]


# The scheduler's own gangs


def test_an_attempt_has_one_group_and_all_its_pods_name_it():
    found = planned(ON_TWO_SLICES.with_("spec.podTemplate.priorityClassName", "high"), TWO_SLICES)
    group = found["tj-gpt-corpus-3"]
    assert (group["apiVersion"], group["kind"]) == ("scheduling.k8s.io/v1beta1", "PodGroup")
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 8}}
    assert group["spec"]["priorityClassName"] == "high"
    assert group["metadata"]["ownerReferences"][0]["kind"] == "TrainingJob"
    jobs = [child for child in found.values() if child["kind"] == "Job"]
    assert [pod_of(job)["schedulingGroup"] for job in jobs] == [{"podGroupName": "tj-gpt-corpus-3"}] * 2
    assert list(found)[-2:] == ["gpt-corpus-0-3", "gpt-corpus-1-3"], "the group is there before the pods that name it"


@pytest.mark.parametrize(
    ("job", "gangs"),
    [
        (make_job(), GANGS),
        (make_job().nodes(2), Gangs()),
        (make_job().nodes(2), None),
        (make_job().nodes(2).with_("spec.podTemplate.schedulerName", "volcano"), GANGS),
    ],
    ids=["one pod", "PodGroup is not served", "nobody asked", "another scheduler"],
)
def test_a_job_that_needs_no_gang_has_no_pod_group(job, gangs):
    found = planned(job, gangs=gangs)
    assert "PodGroup" not in {child["kind"] for child in found.values()}
    assert "schedulingGroup" not in pod_of(found["gpt-corpus-0-3"])


# Schedulers that a job or its pool names

OTHERS = Gangs(
    (
        PodGroup("scheduling.k8s.io/v1beta1"),
        Volcano("scheduling.volcano.sh/v1beta1"),
        Kai("scheduling.run.ai/v2alpha2"),
        OneByOne(),
    )
)
NAMED = {
    "volcano": ("scheduling.volcano.sh/v1beta1", "scheduling.volcano.sh/queue-name", "scheduling.k8s.io/group-name"),
    "kai-scheduler": ("scheduling.run.ai/v2alpha2", "kai.scheduler/queue", "pod-group-name"),
}


@pytest.mark.parametrize("where", ["job", "pool"])
@pytest.mark.parametrize("scheduler", NAMED)
def test_a_scheduler_that_is_named_gets_a_group_of_its_own_kind_in_the_queue_of_the_label(scheduler, where):
    version, queue, annotation = NAMED[scheduler]
    job, pool = ON_TWO_SLICES.with_("metadata.labels", {queue: "research"}), TWO_SLICES
    if where == "job":
        job = job.with_("spec.podTemplate.schedulerName", scheduler)
    else:
        pool = replace(pool, scheduler_name=scheduler)
    built = job.with_("spec.podTemplate.priorityClassName", "high").build()
    found = children(built, place(built, pool), 3, scheduler=OTHERS.of(built, pool))
    (group,) = [child for child in found if child["kind"] == "PodGroup"]
    assert group["apiVersion"] == version
    assert group["spec"] == {"minMember": 8, "queue": "research", "priorityClassName": "high"}
    for one in [child for child in found if child["kind"] == "Job"]:
        assert one["spec"]["template"]["metadata"]["annotations"][annotation] == group["metadata"]["name"]
        assert pod_of(one)["schedulerName"] == scheduler
        assert "schedulingGroup" not in pod_of(one)


@pytest.mark.parametrize("scheduler", NAMED)
def test_the_group_of_an_attempt_is_deleted_with_it_and_one_that_the_job_brings_is_not(scheduler):
    version, _, annotation = NAMED[scheduler]
    job = make_job().nodes(2).with_("spec.podTemplate.schedulerName", scheduler)
    template = planned(job, gangs=OTHERS)["gpt-corpus-0-3"]["spec"]["template"]
    assert list(beside(template)) == [(version, "PodGroup", "tj-gpt-corpus-3")]
    brought = job.with_("spec.podTemplate.metadata.annotations", {annotation: "mine"})
    found = planned(brought, gangs=OTHERS)
    assert "PodGroup" not in {child["kind"] for child in found.values()}
    assert list(beside(found["gpt-corpus-0-3"]["spec"]["template"])) == []


def test_a_named_scheduler_without_its_kind_starts_the_pods_one_by_one():
    job = make_job().nodes(2).with_("spec.podTemplate.schedulerName", "volcano").build()
    assert isinstance(GANGS.of(job), OneByOne)


# Without them


class Crowd(Scene):
    """A cluster that starts each pod by itself, with room for some."""

    patience = timedelta(seconds=60)

    def plan(self):
        return plan(self.job, self.pool, self.observed(), self.now, gangs=Gangs((OneByOne(timeout=self.patience),)))

    def room_for(self, count):
        """The first pods run, the others find no room."""
        for number, (name, pod) in enumerate(list(self.objects.pods.items())):
            if pod["status"]["phase"] != "Pending":
                continue
            if number < count:
                self.objects.started(name, self.now)
                pod["status"]["conditions"][0]["lastTransitionTime"] = write_time(self.now)
            else:
                waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
                pod["status"]["conditions"] = [waits]
        return self


def longest(scene):
    return 60 * (1 + jitter(scene.job.uid, 1) / 2)


def test_a_part_that_found_room_gives_it_back_and_is_not_counted():
    scene = Crowd(make_job().nodes(4).with_("spec.maxRestarts", 0)).settle().room_for(3).settle().wait(3).settle()
    assert scene.state == "Queued"
    assert scene.last.requeue_after <= longest(scene)
    scene.wait(longest(scene) - 5).settle()
    assert scene.state == "Queued"
    scene.wait(3).settle()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]
    assert scene.state == "Restarting"
    assert "only 3 of 4 pods found room" in scene.condition("Reconciling")["message"]
    scene.exit_all(143).settle()
    assert scene.status["attempts"][0]["reason"] == "GangIncomplete"
    assert scene.status["restarts"] == {"total": 0, "counted": 0, "disruptions": 0}
    assert "attempt 2 starts at" in scene.condition("Restarting")["message"], "it waits before it asks again"
    scene.wait(16).settle()
    assert scene.applied[-1] == "gpt-corpus-0-2"
    assert scene.status["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}


def test_a_gang_that_fills_up_is_not_given_up():
    scene = Crowd(make_job().nodes(4)).settle().room_for(1).settle()
    for count in (2, 3, 4):
        scene.wait(59).settle().room_for(count).settle()
    assert scene.state == "Running"
    assert scene.deleted == []


def test_a_gang_without_any_room_waits_as_long_as_it_takes():
    scene = Crowd(make_job().nodes(4)).settle().room_for(0).settle().wait(3600).settle()
    assert (scene.state, scene.deleted) == ("Queued", [])


def test_two_gangs_give_way_at_different_times_and_come_back_at_different_times():
    waits = {round(jitter(f"uid-{number}", 1), 3) for number in range(50)}
    assert len(waits) > 45
    assert all(0 <= wait < 1 for wait in waits)


def test_the_waits_grow():
    scene = Crowd(make_job().nodes(2)).settle()
    delays = []
    for number in range(1, 5):
        scene.room_for(1).settle().wait(91).settle().exit_all(143).settle()
        delays.append(scene.last.requeue_after / (0.5 + jitter(scene.job.uid, number)))
        scene.wait(scene.last.requeue_after + 1).settle()
        scene.objects.pods = {name: pod for name, pod in scene.objects.pods.items() if name[-3] == str(number + 1)}
    assert delays == pytest.approx([10, 10, 20, 40], abs=1)


# Slices


def test_slices_are_named_apart_and_share_one_service():
    found = planned(ON_TWO_SLICES, TWO_SLICES, Gangs())
    assert list(found) == ["tj-gpt-corpus", "gpt-corpus-0-3", "gpt-corpus-1-3"]
    labels = [found[f"gpt-corpus-{slice_}-3"]["metadata"]["labels"] for slice_ in (0, 1)]
    assert [(one["trainwright.dev/slice"], one["trainwright.dev/slices"]) for one in labels] == [("0", "2"), ("1", "2")]


def test_a_slice_of_several_hosts_has_a_node_pool_to_itself():
    found = pod_of(planned(ON_TWO_SLICES, TWO_SLICES)["gpt-corpus-1-3"])["affinity"]
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    together, *apart = [*found["podAffinity"][required], *found["podAntiAffinity"][required]]
    assert {one["topologyKey"] for one in (together, *apart)} == {"cloud.google.com/gke-nodepool"}
    assert together["labelSelector"]["matchLabels"]["batch.kubernetes.io/job-name"] == "gpt-corpus-1-3"
    assert {"key": "batch.kubernetes.io/job-name", "operator": "NotIn", "values": ["gpt-corpus-1-3"]} in (
        apart[0]["labelSelector"]["matchExpressions"]
    )
    assert apart[1]["namespaceSelector"] == {}, "other jobs are kept out, wherever they are"
    one_host = parse_pool(pool_manifest("v5e-8"))
    assert "affinity" not in pod_of(planned(make_job(), one_host)["gpt-corpus-0-3"])


def two_slices():
    return Scene(ON_TWO_SLICES, pool=TWO_SLICES)


def test_the_job_succeeds_when_every_slice_has():
    scene = two_slices().settle().start_pods().wait(3).settle()
    assert (scene.state, scene.status["nodes"]["desired"]) == ("Running", 8)
    for name in [name for name in scene.objects.pods if name.startswith("gpt-corpus-0-")]:
        scene.objects.ended(name, 0, "", scene.now)
    assert scene.wait(60).settle().state == "Running"
    assert scene.exit_all(0).settle().state == "Succeeded"


def test_a_slice_that_fails_takes_the_others_with_it_and_all_start_again():
    scene = two_slices().settle().start_pods().wait(3).settle()
    scene.objects.ended("gpt-corpus-1-1-2", 137, "", scene.now)
    scene.settle()
    assert "Job/gpt-corpus-0-1" in scene.deleted
    scene.wait(5).exit_all(143).settle()
    assert scene.status["attempts"][0]["pod"] == "gpt-corpus-1-1-2"
    assert scene.applied[-2:] == ["gpt-corpus-0-2", "gpt-corpus-1-2"]
    assert scene.status["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}


def test_a_slice_that_was_taken_away_unseen_takes_the_others_with_it():
    scene = two_slices().settle().start_pods().wait(3).settle()
    scene.objects.pods = {name: pod for name, pod in scene.objects.pods.items() if not name.startswith("gpt-corpus-1-")}
    for kind in ("FailureTarget", "Failed"):
        scene.objects._add(scene.objects.jobs["gpt-corpus-1-1"], kind, "BackoffLimitExceeded", scene.now)
    assert "Job/gpt-corpus-0-1" in scene.settle().deleted
    scene.wait(5).exit_all(143, ended_by="signal").settle().wait(15).settle()
    assert scene.status["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}
    assert scene.status["attempts"][0]["reason"] == "PodsGone"


def half_made(status):
    """The operator created the first of two Jobs and died: before the status was written, or after."""
    scene = two_slices()
    made = scene.step()
    if not status:
        scene.status = {}
    scene.objects.jobs.pop("gpt-corpus-1-1")
    scene.objects.pods = {name: pod for name, pod in scene.objects.pods.items() if not name.startswith("gpt-corpus-1-")}
    scene.applied.clear()
    return scene, made


@pytest.mark.parametrize("status", [False, True], ids=["status not written", "status written"])
def test_a_half_made_attempt_is_completed(status):
    scene, _ = half_made(status)
    scene.settle()
    assert scene.applied == ["tj-gpt-corpus", "gpt-corpus-1-1"]
    assert scene.status["nodes"]["desired"] == 8
    assert [one["attempt"] for one in scene.status["attempts"]] == [1]
    scene.start_pods().wait(1).settle()
    assert scene.state == "Running"


def test_a_half_made_attempt_that_would_be_planned_otherwise_today_is_given_up():
    scene, _ = half_made(False)
    scene.pool = replace(TWO_SLICES, env=({"name": "NEW", "value": "1"},))
    scene.settle()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]
    scene.exit_all(143).settle()
    assert scene.applied == ["tj-gpt-corpus", "gpt-corpus-0-2", "gpt-corpus-1-2"]
    assert scene.status["attempts"][0]["outcome"] == "Disrupted"
    assert "1 of 2 slices had their Job" in scene.status["attempts"][0]["message"]


def test_a_slice_that_is_deleted_at_work_is_a_disruption_of_the_whole():
    scene = two_slices().settle().start_pods().wait(3).settle()
    scene.objects.jobs.pop("gpt-corpus-1-1")
    scene.objects.pods = {name: pod for name, pod in scene.objects.pods.items() if not name.startswith("gpt-corpus-1-")}
    scene.settle()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]
    scene.exit_all(143).settle()
    assert scene.status["attempts"][0]["reason"] == "JobDeleted"
    assert scene.applied[-2:] == ["gpt-corpus-0-2", "gpt-corpus-1-2"]


def test_what_an_attempt_has_beside_its_jobs_goes_with_them():
    pool = replace(parse_pool(pool_manifest("h100")), device_class_name="gpu.nvidia.com")
    scene = Scene(make_job().nodes(2).with_("spec.maxRestarts", 9), pool=pool).settle()
    for _ in range(4):
        scene.start_pods().wait(1).settle().exit_all(1).settle().wait(400).settle()
    assert scene.deleted == ["Job/gpt-corpus-0-1", "ResourceClaimTemplate/tj-gpt-corpus-1"]


def test_devices_are_claimed_by_a_template_where_the_pool_names_a_class():
    pool = replace(
        parse_pool(pool_manifest("h100")),
        device_class_name="gpu.nvidia.com",
        device_selectors=("device.attributes['gpu.nvidia.com'].productName == 'H100'",),
        rdma_resources={},
    )
    found = planned(make_job().nodes(2, 4), pool, Gangs())
    request = found["tj-gpt-corpus-3"]["spec"]["spec"]["devices"]["requests"][0]
    assert (request["exactly"]["deviceClassName"], request["exactly"]["count"]) == ("gpu.nvidia.com", 4)
    assert request["exactly"]["selectors"][0]["cel"]["expression"].endswith("== 'H100'")
    pod = pod_of(found["gpt-corpus-0-3"])
    assert pod["resourceClaims"] == [{"name": "accelerators", "resourceClaimTemplateName": "tj-gpt-corpus-3"}]
    assert pod["containers"][0]["resources"] == {"claims": [{"name": "accelerators"}]}


# A scheduler of another kind, as a queue is


@dataclass(frozen=True)
class Queue(GangScheduler):
    """Admits attempts one at a time, and knows their pods by a label."""

    admits: bool = False

    def takes(self, job, scheduler):
        return "queue" in job.labels

    def membership(self, gang):
        workload = {"apiVersion": "queues/v1", "kind": "Workload", "metadata": gang.metadata}
        return Membership((workload,), {"queues/set": "main"}, {"queues/of": "team-a"}, {"schedulerName": "fair"})

    def hold(self, job, observed, now):
        return None if self.admits else Hold("NotAdmitted", "the queue is full", queued=True)


class Queued(Scene):
    gangs = Gangs((Queue(), OneByOne()))

    def plan(self):
        return plan(self.job, self.pool, self.observed(), self.now, gangs=self.gangs)


IN_QUEUE = make_job().with_("metadata.labels", {"queue": "team-a"})


def test_an_attempt_waits_in_its_queue_with_nothing_but_what_the_queue_needs():
    scene = Queued(IN_QUEUE).settle()
    assert set(scene.applied) == {"tj-gpt-corpus-1"}, "the queue's own object, and no Job"
    assert (scene.state, scene.condition("Queued")["message"]) == ("Queued", "the queue is full")
    assert "attempts" not in scene.status, "what has not started is no attempt, and no restart"


def test_an_attempt_starts_when_its_queue_admits_it_and_its_pods_say_so():
    scene = Queued(IN_QUEUE).settle()
    scene.gangs = Gangs((Queue(admits=True), OneByOne()))
    scene.settle()
    assert (scene.applied[-1], scene.state) == ("gpt-corpus-0-1", "Starting")
    template = scene.objects.jobs["gpt-corpus-0-1"]["spec"]["template"]
    assert template["metadata"]["labels"]["queues/set"] == "main"
    assert template["metadata"]["annotations"]["queues/of"] == "team-a"
    assert template["spec"]["schedulerName"] == "fair"


def test_the_deadline_does_not_count_before_the_first_attempt():
    scene = Queued(IN_QUEUE.with_("spec.activeDeadlineSeconds", 60)).settle()
    assert scene.wait(61).settle().state == "Queued"


def test_a_job_that_no_queue_takes_starts_at_once():
    assert Queued(make_job()).settle().applied == ["gpt-corpus-0-1"]
