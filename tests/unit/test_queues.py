"""A job in a queue of Kueue: what it waits for, when it stops, where it runs, and what its Workload is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import make_job
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.observe import Attempt, Job, JobState, Observed, Pod
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.queues import kueue
from trainwright_operator.core.queues.kueue import LABEL_QUEUE, Queue
from trainwright_operator.core.queues.workload import FINALIZER, Flavor, Workload

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL = AcceleratorPool("cpu", "cpu")
Object = dict[str, Any]


def job(**labels: str) -> TrainingJob:
    return replace(make_job().nodes(2).build(), labels={LABEL_QUEUE: "team", **labels}, uid="0123456789")


def when(kind: str, holds: bool, reason: str = "R", message: str = "m") -> Object:
    at = "2026-01-01T11:00:00Z"
    return {"type": kind, "status": str(holds), "reason": reason, "message": message, "lastTransitionTime": at}


def stored(of: TrainingJob, *conditions: Object, admission: Object | None = None, **spec: Any) -> Object:
    made = kueue.workload(of, place(of, POOL), Queue())
    made["metadata"] |= {"uid": "w", "generation": 1, "creationTimestamp": "2026-01-01T11:00:00Z"}
    return {
        **made,
        "spec": {**made["spec"], **spec},
        "status": {"conditions": list(conditions), **({"admission": admission} if admission else {})},
    }


ADMISSION = {
    "clusterQueue": "cq",
    "podSetAssignments": [{"name": "main", "count": 2, "flavors": {"cpu": "spot", "memory": "spot"}}],
}
ADMITTED = (when("QuotaReserved", True), when("Admitted", True))
EVICTED = (*ADMITTED, when("Evicted", True, "Preempted", "to make room"))
SPOT = {"spot": Flavor({"pool": "spot"}, ({"key": "spot", "operator": "Exists"},))}


def admitted(of: TrainingJob, *conditions: Object) -> Queue:
    return Queue(Workload(stored(of, *(conditions or ADMITTED), admission=ADMISSION)), SPOT)


def running(of: TrainingJob) -> tuple[TrainingJob, Observed]:
    """The job with an attempt of two ready pods, created by a plan of its own."""
    first = plan(of, POOL, Observed(), NOW, queue=admitted(of))
    pods = tuple(Pod(f"p-{i}", 1, index=i, node="n", ready=True, gang=2) for i in range(2))
    attempt = Attempt(1, (Job("train-0-1", 1, completions=2, created=NOW, queued=True),), pods)
    observed = Observed((attempt,))
    return replace(of, status=plan(replace(of, status=first.status), POOL, observed, NOW).status), observed


def ended(observed: Observed) -> Observed:
    attempt = observed.attempts[0]
    return Observed(
        (replace(attempt, jobs=(replace(attempt.jobs[0], deleting=True, state=JobState.ENDING),), pods=()),)
    )


def kinds(planned: Plan) -> list[str]:
    return [child["kind"] for child in planned.apply]


def test_a_new_job_creates_its_workload_and_writes_no_status_before_kueue_answers() -> None:
    planned = plan(job(), POOL, Observed(), NOW, queue=Queue())
    assert kinds(planned) == ["Workload"]
    assert planned.status == {}
    assert planned.requeue_after == 3


def test_the_workload_counts_every_pod_and_says_what_one_asks_for() -> None:
    made = kueue.workload(job(), place(job(), POOL), Queue())
    spec = made["spec"]["podSets"][0]["template"]["spec"]
    assert made["spec"]["queueName"] == "team"
    assert made["spec"]["podSets"][0]["count"] == 2
    assert [container["name"] for container in spec["containers"]] == ["trainer"]
    assert made["metadata"]["finalizers"] == [FINALIZER]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "0123456789"


def test_the_slices_of_a_tpu_job_are_one_unit() -> None:
    pool = AcceleratorPool("v6e", "tpu", generation="v6e", topology="4x4", chips_per_host=4, slices=2)
    of = replace(make_job().build(), labels={LABEL_QUEUE: "team"}, uid="0123456789")
    pod_set = kueue.workload(of, place(of, pool), Queue())["spec"]["podSets"][0]
    assert pod_set["count"] == 8
    assert pod_set["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == "4"


def test_claimed_devices_are_counted_where_the_pool_names_their_quota() -> None:
    pool = AcceleratorPool("dra", "nvidia", device_class_name="gpu.nvidia.com", per_node=4)
    counted = replace(pool, quota_resource="example.com/gpu")

    def resources(of: AcceleratorPool) -> Object:
        spec = kueue.workload(job(), place(job(), of), Queue())["spec"]["podSets"][0]["template"]["spec"]
        assert "resourceClaims" not in spec, "Kueue would look for their templates"
        return dict(spec["containers"][0].get("resources", {}))

    assert "example.com/gpu" not in str(resources(pool))
    assert resources(counted)["requests"]["example.com/gpu"] == "4"
    assert "claims" not in resources(counted)
    on = plan(job(), counted, Observed(), NOW, queue=Queue(Workload(of_pool(job(), counted)), SPOT))
    template = next(child for child in on.apply if child["kind"] == "Job")["spec"]["template"]
    assert "example.com/gpu" not in str(template), "no node has it"


def of_pool(of: TrainingJob, pool: AcceleratorPool) -> Object:
    made = kueue.workload(of, place(of, pool), Queue())
    return {**made, "status": {"conditions": list(ADMITTED), "admission": ADMISSION}}


def test_nothing_of_the_workload_changes_with_the_attempt() -> None:
    of, _ = running(job())
    later = replace(of, status={**of.status, "attempts": [*of.status["attempts"], {"attempt": 7, "startTime": "x"}]})
    assert kueue.workload(of, place(of, POOL), Queue()) == kueue.workload(later, place(of, POOL), Queue())


@pytest.mark.parametrize("labels", [{kueue.LABEL_PRIORITY: "urgent"}, {}])
def test_the_priority_is_that_of_the_label_else_of_the_pods(labels: dict[str, str]) -> None:
    of = job(**labels)
    pods = replace(of.spec.pod_template, priority_class_name="batch")
    of = replace(of, spec=replace(of.spec, pod_template=pods))
    made = kueue.workload(of, place(of, POOL), Queue(priorities={"urgent": 9, "pod/batch": 3}))
    name, value, group = ("urgent", 9, "kueue.x-k8s.io") if labels else ("batch", 3, "scheduling.k8s.io")
    assert (made["spec"]["priorityClassRef"]["name"], made["spec"]["priority"]) == (name, value)
    assert made["spec"]["priorityClassRef"]["group"] == group


WAITS = {
    "quota": ((when("QuotaReserved", False, "WaitingForQuota", "2 more needed"),), {}, "WaitingForQuota", False),
    "no queue": (
        (when("QuotaReserved", False, "Inadmissible", "LocalQueue team doesn't exist"),), {}, "Inadmissible", True,
    ),
    "deactivated": ((), {"active": False}, "Deactivated", True),
    "a check": ((when("QuotaReserved", True), when("Admitted", False)), {}, "AdmissionChecks", False),
    "no controller": ((), {}, "PendingEvaluation", False),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITS)
def test_a_job_that_waits_says_what_for(case: str) -> None:
    conditions, spec, reason, stalled = WAITS[case]
    planned = plan(job(), POOL, Observed(), NOW, queue=Queue(Workload(stored(job(), *conditions, **spec))))
    found = {one["type"]: one for one in planned.status["conditions"]}
    assert planned.status["state"] == "Queued"
    assert found["Queued"]["reason"] == reason
    assert found["Queued"]["message"].startswith("queue team: ")
    assert ("Stalled" in found) == stalled
    assert planned.apply == ()
    assert planned.queue == ()


HOPELESS = (
    "couldn't assign flavors to pod set main: insufficient quota for cpu in flavor a, ... (5) > maximum capacity (1)"
)
FULL = "insufficient unused quota for cpu in flavor b, 1 more needed"
SAYS = {
    "more than there is": (HOPELESS, False, True),
    "no such nodes": ("couldn't assign flavors to pod set main: flavor a doesn't match node affinity", False, True),
    "more than there is, or used": (f"{HOPELESS}, {FULL}", False, False),
    "used": (FULL, False, False),
    "more than there is, in its largest size": (HOPELESS, True, False),
}


@pytest.mark.parametrize("case", SAYS)
def test_a_job_that_no_flavor_can_ever_take_is_stalled(case: str) -> None:
    message, elastic, stalled = SAYS[case]
    of = job()
    if elastic:
        of = replace(of, spec=replace(of.spec, accelerator=replace(of.spec.accelerator, min_nodes=1)))
    waits = Queue(Workload(stored(of, when("QuotaReserved", False, "Pending", message))))
    found = {one["type"]: one for one in plan(of, POOL, Observed(), NOW, queue=waits).status["conditions"]}
    assert ("Stalled" in found) == stalled
    assert ("can never admit it: create a smaller job" in found["Queued"]["message"]) == stalled


def test_a_job_that_waits_says_its_place_where_it_is_known() -> None:
    queue = Queue(Workload(stored(job(), *WAITS["quota"][0])), place=2)
    planned = plan(job(), POOL, Observed(), NOW, queue=queue)
    found = {one["type"]: one for one in planned.status["conditions"]}
    assert found["Queued"]["message"] == "queue team: place 2 in the ClusterQueue; 2 more needed"
    assert planned.status["display"]["why"] == found["Queued"]["message"]


def test_a_job_that_kueue_says_nothing_of_has_a_place_too() -> None:
    planned = plan(job(), POOL, Observed(), NOW, queue=Queue(Workload(stored(job())), place=7))
    found = {one["type"]: one for one in planned.status["conditions"]}
    assert found["Queued"]["reason"] == "PendingEvaluation"
    assert found["Queued"]["message"] == (
        "queue team: place 7 in the ClusterQueue; Kueue looks at it when those before it have started"
    )


def test_planning_again_for_a_job_that_waits_changes_nothing() -> None:
    queue = Queue(Workload(stored(job(), *WAITS["quota"][0])))
    first = plan(job(), POOL, Observed(), NOW, queue=queue)
    again = plan(replace(job(), status=first.status), POOL, Observed(), NOW + timedelta(hours=1), queue=queue)
    assert again.status == first.status
    assert again.requeue_after is None, "a job that waits costs nothing"


def test_an_admitted_job_starts_on_the_nodes_of_its_flavor() -> None:
    planned = plan(job(), POOL, Observed(), NOW, queue=admitted(job()))
    template = planned.apply[-1]["spec"]["template"]
    assert kinds(planned) == ["Service", "Job"]
    assert template["spec"]["nodeSelector"] == {"pool": "spot"}
    assert {"key": "spot", "operator": "Exists"} in template["spec"]["tolerations"]
    assert template["metadata"]["annotations"]["kueue.x-k8s.io/workload"] == kueue.workload_name(job())
    assert template["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "main"


@pytest.mark.parametrize("queued", [True, False])
def test_jobs_and_pods_of_an_admitted_job_are_not_queued_a_second_time(queued: bool) -> None:
    labels = {LABEL_QUEUE: "team", "team": "a"}
    made = make_job().nodes(2).with_("spec.jobTemplate.metadata.labels", labels)
    made = made.with_("spec.podTemplate.metadata.labels", labels)
    of = replace(made.build(), labels={LABEL_QUEUE: "team"} if queued else {}, uid="0123456789")
    child = plan(of, POOL, Observed(), NOW, queue=admitted(of) if queued else None).apply[-1]
    for found in (child["metadata"]["labels"], child["spec"]["template"]["metadata"]["labels"]):
        assert found["team"] == "a"
        assert (LABEL_QUEUE in found) != queued


def test_the_updates_of_an_admission_check_reach_the_pods() -> None:
    update = {"nodeSelector": {"reservation": "r1"}, "labels": {"a": "b"}, "annotations": {"c": "d"}}
    found = stored(job(), *ADMITTED, admission=ADMISSION)
    found["status"]["admissionChecks"] = [
        {"name": "prov", "state": "Ready", "podSetUpdates": [{"name": "main", **update}]}
    ]
    template = plan(job(), POOL, Observed(), NOW, queue=Queue(Workload(found), SPOT)).apply[-1]["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"pool": "spot", "reservation": "r1"}
    assert template["metadata"]["labels"]["a"] == "b"
    assert template["metadata"]["annotations"]["c"] == "d"


def test_a_flavor_against_the_job_ends_the_workload_and_says_so() -> None:
    of = replace(
        job(),
        spec=replace(job().spec, pod_template=replace(job().spec.pod_template, node_selector={"pool": "on-demand"})),
    )
    planned = plan(of, POOL, Observed(), NOW, queue=admitted(of))
    assert planned.apply == ()
    assert planned.status["display"]["state"] == "Pending (PoolUnusable)"
    assert "pool=spot contradicts pool=on-demand" in planned.status["display"]["why"]
    (change,) = planned.queue
    assert [one["reason"] for one in change.patch["conditions"] if one["type"] == "Finished"] == ["FailedToStart"]


def test_an_evicted_job_stops_by_checkpoint_and_returns_its_quota_when_no_pod_is_left() -> None:
    of, observed = running(job())
    stopping = plan(of, POOL, observed, NOW, queue=admitted(of, *EVICTED))
    assert stopping.status["state"] == "Stopping"
    assert [gone.kind for gone in stopping.delete] == ["Job"]
    assert stopping.queue == (), "the quota is not free while pods save their checkpoint"

    closed = plan(replace(of, status=stopping.status), POOL, ended(observed), NOW, queue=admitted(of, *EVICTED))
    (change,) = (
        closed.queue
        or plan(replace(of, status=closed.status), POOL, Observed(), NOW, queue=admitted(of, *EVICTED)).queue
    )
    conditions = {one["type"]: (one["status"], one["reason"]) for one in change.patch["conditions"]}
    assert change.patch["admission"] is None
    assert conditions["QuotaReserved"] == ("False", "Pending")
    assert conditions["Admitted"] == ("False", "NoReservation")
    assert conditions["Requeued"] == ("True", "Preempted")
    assert change.patch["accumulatedPastExecutionTimeSeconds"] == 3600
    record = closed.status["attempts"][0]
    assert (record["outcome"], record["reason"]) == ("Stopped", "Preempted")
    assert closed.status["restarts"]["total"] == 0


@pytest.mark.parametrize(
    ("reason", "at_once"), [("Preempted", "True"), ("NodeFailures", "True"), ("PodsReadyTimeout", "False")]
)
def test_kueue_decides_when_others_are_queued_again(reason: str, at_once: str) -> None:
    found = stored(job(), *ADMITTED, when("Evicted", True, reason), admission=ADMISSION)
    (change,) = plan(job(), POOL, Observed(), NOW, queue=Queue(Workload(found), SPOT)).queue
    assert [one["status"] for one in change.patch["conditions"] if one["type"] == "Requeued"] == [at_once]


def test_readiness_is_written_once_and_its_loss_too() -> None:
    of, observed = running(job())
    (change,) = plan(of, POOL, observed, NOW, queue=admitted(of)).queue
    assert (
        change.patch["conditions"][-1] | {"type": "PodsReady", "status": "True", "reason": "Started"}
        == change.patch["conditions"][-1]
    )
    ready = admitted(of, *ADMITTED, when("PodsReady", True, "Started"))
    assert plan(of, POOL, observed, NOW, queue=ready).queue == ()
    lost = plan(replace(of, status={}), POOL, Observed(), NOW, queue=ready).queue
    assert [one.patch["conditions"][-1]["reason"] for one in lost] == ["WaitForRecovery"]


def test_time_in_the_queue_is_not_counted_towards_the_deadline() -> None:
    of, observed = running(job())
    of = replace(of, spec=replace(of.spec, active_deadline_seconds=60))
    stopping = plan(of, POOL, observed, NOW, queue=admitted(of, *EVICTED))
    closed = plan(replace(of, status=stopping.status), POOL, ended(observed), NOW, queue=admitted(of, *EVICTED))
    waiting = Queue(Workload(stored(of, *WAITS["quota"][0])))
    waits = plan(replace(of, status=closed.status), POOL, Observed(), NOW, queue=waiting)
    later = plan(replace(of, status=waits.status), POOL, Observed(), NOW + timedelta(hours=9), queue=waiting)
    assert later.status["state"] == "Queued"


def test_a_changed_job_keeps_its_place_while_it_waits_and_gets_a_new_workload_otherwise() -> None:
    grown = replace(job(), spec=replace(job().spec, accelerator=replace(job().spec.accelerator, nodes=3)))
    waits = plan(grown, POOL, Observed(), NOW, queue=Queue(Workload(stored(job(), *WAITS["quota"][0]))))
    (change,) = waits.queue
    assert change.patch["spec"]["podSets"][0]["count"] == 3
    assert waits.delete == ()
    assert waits.requeue_after == 3, "Kueue writes nothing if its answer is the same"

    holds = plan(grown, POOL, Observed(), NOW, queue=admitted(job()))
    assert [gone.kind for gone in holds.delete] == ["Workload"]
    assert holds.apply == (), "not before it waits for what it now asks for"


@pytest.mark.parametrize("how", ["suspended", "label removed"])
def test_a_job_that_needs_no_quota_leaves_the_queue(how: str) -> None:
    of = job() if how == "suspended" else replace(job(), labels={})
    of = replace(of, spec=replace(of.spec, suspend=how == "suspended"))
    planned = plan(of, POOL, Observed(), NOW, queue=admitted(job()))
    assert [gone.kind for gone in planned.delete] == ["Workload"]
    assert planned.queue[0].patch == {"metadata": {"finalizers": []}}
    assert ("Job" in kinds(planned)) == (how == "label removed")


def test_a_finished_job_returns_its_quota_and_lets_its_workload_go() -> None:
    status = {
        "state": "Succeeded",
        "completionTime": "2026-01-01T11:30:00Z",
        "attempts": [
            {
                "attempt": 1,
                "startTime": "2026-01-01T11:00:00Z",
                "endTime": "2026-01-01T11:30:00Z",
                "outcome": "Succeeded",
            }
        ],
    }
    finished, finalizer = plan(replace(job(), status=status), POOL, Observed(), NOW, queue=admitted(job())).queue
    assert finished.patch["conditions"][-1]["reason"] == "Succeeded"
    assert finalizer.patch == {"metadata": {"finalizers": []}}


def test_a_deleted_workload_is_held_until_the_pods_have_ended() -> None:
    of, observed = running(job())
    found = stored(of, *ADMITTED, admission=ADMISSION)
    found["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    queue = Queue(Workload(found), SPOT)
    stopping = plan(of, POOL, observed, NOW, queue=queue)
    assert (stopping.status["state"], stopping.queue) == ("Stopping", ())
    assert plan(replace(of, status={}), POOL, Observed(), NOW, queue=queue).queue[0].patch == {
        "metadata": {"finalizers": []}
    }


@pytest.mark.parametrize("what", ["pods", "queue"])
@pytest.mark.parametrize("reserved", [False, True])
def test_a_workload_that_was_changed_by_hand_starts_nothing_and_is_not_fought_over(reserved: bool, what: str) -> None:
    found = stored(job(), *(ADMITTED if reserved else WAITS["quota"][0]), admission=ADMISSION)
    if what == "queue":
        found["spec"]["queueName"] = "other"
    else:
        found["spec"]["podSets"][0]["count"] = 1
    planned = plan(job(), POOL, Observed(), NOW, queue=Queue(Workload(found), SPOT))
    assert (planned.apply, planned.queue, planned.delete) == ((), (), ())
    assert planned.status["display"]["state"] == "Queued (WorkloadDiffers)"
    assert "delete workload" in planned.status["display"]["why"]


URGENT = {"urgent": 9}


def of_class(name: str, *conditions: Object) -> Queue:
    """The Workload of a job of class ``urgent``, in a cluster that has only the class ``name``."""
    found = kueue.workload(job(**{kueue.LABEL_PRIORITY: "urgent"}), place(job(), POOL), Queue(priorities=URGENT))
    status = {"conditions": list(conditions), "admission": ADMISSION}
    return Queue(Workload({**found, "status": status}), SPOT, {name: 9})


@pytest.mark.parametrize("label", ["urgent", "nowhere"])
def test_a_priority_class_that_is_gone_holds_no_quota_for_nothing(label: str) -> None:
    of = job(**{kueue.LABEL_PRIORITY: label})
    assert "Job" in kinds(plan(of, POOL, Observed(), NOW, queue=of_class("", *ADMITTED)))


@pytest.mark.parametrize(("label", "reason"), [("urgent", "WaitingForQuota"), ("nowhere", "QueueUnusable")])
def test_a_priority_class_that_does_not_exist_is_named_unless_the_workload_has_it(label: str, reason: str) -> None:
    of = job(**{kueue.LABEL_PRIORITY: label})
    waits = plan(of, POOL, Observed(), NOW, queue=of_class("", *WAITS["quota"][0]))
    assert waits.status["display"]["state"] == f"Queued ({reason})"


WRONG = {
    LABEL_QUEUE: ("Team_A", "is no name of a LocalQueue"),
    kueue.LABEL_MAX_SECONDS: ("soon", "write a whole number of seconds from 1 on"),
}


@pytest.mark.parametrize("label", WRONG)
@pytest.mark.parametrize("waits", [False, True])
def test_a_label_that_kueue_would_refuse_is_named_and_nothing_is_sent(label: str, waits: bool) -> None:
    value, message = WRONG[label]
    of = job(**{label: value})
    queue = Queue(Workload(stored(job(), *WAITS["quota"][0])) if waits else None)
    planned = plan(of, POOL, Observed(), NOW, queue=queue)
    assert (planned.apply, planned.queue, planned.requeue_after) == ((), (), None)
    assert planned.status["display"]["state"] == "Queued (QueueUnusable)"
    assert message in planned.status["display"]["why"]


def test_a_queue_that_cannot_be_followed_holds_the_job() -> None:
    planned = plan(job(), POOL, Observed(), NOW, queue=Queue(trouble="the operator may not read"))
    assert planned.apply == ()
    assert planned.status["display"]["state"] == "Queued (QueueUnusable)"


def test_a_running_job_goes_on_while_its_queue_cannot_be_followed() -> None:
    of, observed = running(job())
    planned = plan(of, POOL, observed, NOW, queue=Queue(trouble="the operator may not read"))
    assert planned.status["state"] == "Running"
    assert planned.delete == ()


# Topology


def in_one(kind: str) -> TrainingJob:
    return replace(make_job().nodes(2).with_("spec.accelerator.topology", {kind: "rack"}).build(), uid="0123456789")


@pytest.mark.parametrize("kind", ["required", "preferred"])
def test_a_topology_is_asked_of_kueue_by_the_indexes_of_the_pods(kind: str) -> None:
    of = replace(in_one(kind), labels={LABEL_QUEUE: "team"})
    request = kueue.workload(of, place(of, POOL), Queue())["spec"]["podSets"][0]["topologyRequest"]
    assert request == {kind: "rack", "podIndexLabel": "batch.kubernetes.io/job-completion-index"}


def test_slices_are_subgroups_of_the_topology() -> None:
    pool = AcceleratorPool("v6e", "tpu", generation="v6e", topology="4x4", chips_per_host=4, slices=2)
    of = make_job().with_("spec.accelerator.topology", {"required": "rack"}).build()
    request = kueue.workload(of, place(of, pool), Queue())["spec"]["podSets"][0]["topologyRequest"]
    assert (request["subGroupIndexLabel"], request["subGroupCount"]) == ("trainwright.dev/slice", 2)


def test_pods_with_a_place_in_the_topology_wait_for_kueue_to_open_their_gate() -> None:
    of = replace(in_one("required"), labels={LABEL_QUEUE: "team"})
    assigned = {"levels": ["rack"], "slices": []}
    admission = {
        **ADMISSION,
        "podSetAssignments": [{**ADMISSION["podSetAssignments"][0], "topologyAssignment": assigned}],
    }
    found = Queue(Workload(stored(of, *ADMITTED, admission=admission)), SPOT)
    template = plan(of, POOL, Observed(), NOW, queue=found).apply[-1]["spec"]["template"]
    spec = template["spec"]
    assert template["metadata"]["annotations"]["kueue.x-k8s.io/podset-required-topology"] == "rack"
    assert spec["schedulingGates"] == [{"name": "kueue.x-k8s.io/topology"}]
    assert "affinity" not in spec, "Kueue has chosen the nodes"


@pytest.mark.parametrize("kind", ["required", "preferred"])
def test_without_a_queue_a_topology_is_an_affinity_among_the_pods_of_an_attempt(kind: str) -> None:
    of = in_one(kind)
    spec = plan(of, POOL, Observed(), NOW).apply[-1]["spec"]["template"]["spec"]
    (term,) = spec["affinity"]["podAffinity"][f"{kind}DuringSchedulingIgnoredDuringExecution"]
    term = term if kind == "required" else term["podAffinityTerm"]
    assert term["topologyKey"] == "rack"
    assert term["labelSelector"]["matchLabels"] == {
        "trainwright.dev/job-uid": "0123456789",
        "trainwright.dev/attempt": "1",
    }
