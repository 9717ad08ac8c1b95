"""A job that trains in another cluster: what the manager's operator writes, and what the worker's does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import make_job
from trainwright.contract import ResolvedJob
from trainwright_operator.api.names import MULTIKUEUE
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.observe import Attempt, Job, JobState, Observed, Pod
from trainwright_operator.core.placement.pools import place
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.queues import kueue
from trainwright_operator.core.queues.kueue import LABEL_QUEUE, PREBUILT, Queue
from trainwright_operator.core.queues.workload import FINALIZER, Flavor, Workload

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL = AcceleratorPool("cpu", "cpu")
FLAVORS = {"spot": Flavor()}
ADMISSION = {"clusterQueue": "cq", "podSetAssignments": [{"name": "main", "count": 2, "flavors": {"cpu": "spot"}}]}
Object = dict[str, Any]

RUNNING: Object = {
    "state": "Running",
    "attempts": [{"attempt": 3, "startTime": "2026-01-01T11:00:00Z"}],
    "startTime": "2026-01-01T11:00:00Z",
}
AT_REST: Object = {
    "state": "Queued",
    "attempts": [
        {
            "attempt": 3,
            "startTime": "2026-01-01T11:00:00Z",
            "endTime": "2026-01-01T11:30:00Z",
            "outcome": "Stopped",
            "reason": "Preempted",
        }
    ],
}


def managed(**status: Any) -> TrainingJob:
    made = make_job().nodes(2).with_("spec.managedBy", MULTIKUEUE).build()
    return replace(made, labels={LABEL_QUEUE: "team"}, uid="0123456789", status=status)


def when(kind: str, holds: bool, reason: str = "R", message: str = "m", at: str = "2026-01-01T11:59:59Z") -> Object:
    return {"type": kind, "status": str(holds), "reason": reason, "message": message, "lastTransitionTime": at}


ADMITTED = (when("QuotaReserved", True), when("Admitted", True))
EVICTED = (*ADMITTED, when("Evicted", True, "AdmissionCheck", "Workload evicted on worker cluster"))
LOST = (*ADMITTED, when("Evicted", True, "AdmissionCheck", "multikueue, message: Admitting remote lost"))


def entered(of: TrainingJob, *conditions: Object) -> Queue:
    made = kueue.workload(of, place(of, POOL), Queue())
    made["metadata"] |= {"uid": "w", "generation": 1, "creationTimestamp": "2026-01-01T11:00:00Z"}
    made["status"] = {"conditions": list(conditions), "admission": ADMISSION}
    return Queue(Workload(made), FLAVORS)


def planned(of: TrainingJob, queue: Queue, now: datetime = NOW) -> Plan:
    return plan(of, POOL, Observed(), now, queue=queue)


def test_the_manager_makes_the_workload_and_nothing_else() -> None:
    (made,) = planned(managed(), Queue()).apply
    assert made["kind"] == "Workload"
    assert made["metadata"]["annotations"]["trainwright.dev/origin-uid"] == "0123456789"
    waits = planned(managed(), entered(managed(), when("QuotaReserved", False, "Pending", "no quota")))
    assert waits.status["display"]["state"] == "Queued (Pending)"
    assert waits.apply == ()


def test_the_status_of_a_job_that_a_worker_has_is_not_touched() -> None:
    of = managed(**RUNNING)
    found = planned(of, entered(of, *ADMITTED))
    assert found.status == RUNNING
    assert found.apply == ()
    (ready,) = found.queue
    assert [one["status"] for one in ready.patch["conditions"] if one["type"] == "PodsReady"] == ["True"]


def test_an_evicted_job_keeps_its_quota_until_the_worker_has_stopped_it() -> None:
    of = managed(**RUNNING)
    waits = planned(of, entered(of, *EVICTED))
    assert waits.queue == ()
    assert waits.requeue_after is not None
    late = planned(of, entered(of, *EVICTED), NOW + timedelta(minutes=5))
    assert late.queue[-1].patch["admission"] is None, "a worker that never answers does not keep the quota"


@pytest.mark.parametrize(("status", "conditions"), [(AT_REST, EVICTED), (RUNNING, LOST)], ids=["at rest", "lost"])
def test_the_quota_is_returned_and_the_next_worker_goes_on_counting(status: Object, conditions: Any) -> None:
    of = managed(**status)
    queue = entered(managed(), *conditions)
    number, returned = planned(of, queue).queue
    assert number.patch == {"metadata": {"annotations": {"trainwright.dev/attempts": "3"}}}
    assert returned.patch["admission"] is None
    waiting = entered(of, when("QuotaReserved", False, "Pending", "no quota"), *LOST[2:])
    (record,) = planned(of, waiting).status["attempts"]
    assert record["outcome"] == "Stopped"


def test_a_finished_workload_is_let_go_and_the_end_is_written_if_the_worker_could_not() -> None:
    of = managed(**{**AT_REST, "state": "Succeeded"})
    (change,) = planned(of, entered(of, *ADMITTED, when("Finished", True, "Succeeded"))).queue
    assert change.patch == {"metadata": {"finalizers": []}}
    unheard = planned(managed(**RUNNING), entered(managed(), *ADMITTED, when("Finished", True, "Failed", "no disk")))
    assert unheard.status["state"] == "Failed"
    assert "no disk" in unheard.status["display"]["why"]
    gone = planned(of, Queue())
    assert (gone.apply, gone.status["state"]) == ((), "Succeeded"), "a job that has ended is not sent again"


def test_a_suspended_job_takes_its_workload_out() -> None:
    of = managed(**RUNNING)
    of = replace(of, spec=replace(of.spec, suspend=True))
    found = planned(of, entered(of, *ADMITTED))
    assert [gone.kind for gone in found.delete] == ["Workload"]
    assert found.status["state"] == "Suspended"


@pytest.mark.parametrize("without", ["label", "Kueue"])
def test_a_job_that_nobody_can_send_says_what_is_missing(without: str) -> None:
    of = managed() if without == "Kueue" else replace(managed(), labels={})
    found = planned(of, Queue(trouble="no Kueue" if without == "Kueue" else ""))
    assert found.apply == ()
    assert found.status["display"]["state"] == "Queued (QueueUnusable)"


def test_a_job_without_a_cluster_ignores_who_manages_it() -> None:
    assert [child["kind"] for child in plan(managed(), POOL, Observed(), NOW).apply] == ["Service", "Job"]


# In the worker cluster


def copied(**status: Any) -> TrainingJob:
    made = make_job().nodes(2).build()
    name = kueue.workload_name(managed())
    return replace(made, labels={LABEL_QUEUE: "team"}, annotations={PREBUILT: name}, uid="worker-uid", status=status)


def prebuilt(*conditions: Object, **annotations: str) -> Queue:
    stored = dict(entered(managed(), *conditions).workload.stored)  # type: ignore[union-attr]
    meta = {name: value for name, value in stored["metadata"].items() if name not in ("ownerReferences", "finalizers")}
    meta["annotations"] = {**meta["annotations"], **annotations}
    return Queue(Workload({**stored, "metadata": meta}), FLAVORS)


def test_the_worker_adopts_the_workload_that_was_made_for_it() -> None:
    assert planned(copied(), Queue()).apply == (), "it makes none of its own"
    found = planned(copied(), prebuilt(*ADMITTED))
    assert [child["kind"] for child in found.apply] == ["Service", "Job"]
    (adopted,) = found.queue
    assert adopted.patch["metadata"]["ownerReferences"][0]["uid"] == "worker-uid"
    assert adopted.patch["metadata"]["labels"] == {"kueue.x-k8s.io/job-uid": "worker-uid"}


def test_the_worker_goes_on_where_another_was() -> None:
    queue = prebuilt(*ADMITTED, **{"trainwright.dev/attempts": "3"})
    of = kueue.of_origin(copied(), queue.workload)
    job = planned(of, queue).apply[-1]
    resolved = ResolvedJob.from_json(job["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"])
    assert (resolved.uid, resolved.attempt) == ("0123456789", 4)


def test_a_workload_that_asks_for_something_else_holds_the_job() -> None:
    queue = prebuilt(*ADMITTED)
    assert queue.workload
    spec = queue.workload.stored["spec"]
    spec["podSets"][0]["count"] = 5
    found = planned(copied(), queue)
    assert found.apply == ()
    assert found.status["display"]["state"] == "Queued (WorkloadDiffers)"
    assert "has 5 pods, and here the job has 2" in found.status["display"]["why"]
    assert [change.patch.get("spec") for change in found.queue] == [None], "it is the manager's, and is not changed"


def test_the_end_is_written_to_the_workload_after_the_status() -> None:
    ended = {**AT_REST["attempts"][0], "outcome": "Succeeded", "reason": "TrainingCompleted"}
    before = planned(copied(state="Running", attempts=[ended]), prebuilt(*ADMITTED))
    assert before.status["state"] == "Succeeded"
    assert (before.queue, before.requeue_after) == ((), 0)
    finished = planned(copied(**before.status), prebuilt(*ADMITTED)).queue
    assert [one["reason"] for one in finished[0].patch["conditions"] if one["type"] == "Finished"] == ["Succeeded"]


def test_a_suspended_copy_keeps_the_workload_of_the_manager() -> None:
    of = replace(copied(), spec=replace(copied().spec, suspend=True))
    assert planned(of, prebuilt(*ADMITTED)).delete == ()


def test_an_evicted_copy_returns_its_quota_when_no_pod_is_left() -> None:
    pods = tuple(Pod(f"p-{i}", 3, index=i, node="n", ready=True, gang=2) for i in range(2))
    attempt = Attempt(3, (Job("gpt-corpus-0-3", 3, completions=2, created=NOW, queued=True),), pods)
    stopping = plan(copied(**RUNNING), POOL, Observed((attempt,)), NOW, queue=prebuilt(*EVICTED))
    assert stopping.status["state"] == "Stopping"
    gone = replace(attempt, jobs=(replace(attempt.jobs[0], deleting=True, state=JobState.ENDING),), pods=())
    closed = plan(copied(**stopping.status), POOL, Observed((gone,)), NOW, queue=prebuilt(*EVICTED))
    assert closed.queue[-1].patch["admission"] is None


def test_an_unowned_workload_of_another_name_is_not_taken() -> None:
    stored = prebuilt(*ADMITTED).workload.stored  # type: ignore[union-attr]
    assert kueue.workload_of(copied(), [stored])
    assert kueue.workload_of(replace(copied(), annotations={}), [stored]) is None
    assert FINALIZER not in stored["metadata"].get("finalizers", ())
