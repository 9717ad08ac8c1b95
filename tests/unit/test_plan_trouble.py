"""The plan when something goes wrong around a job: pools and names, crashes between two writes, pods that vanish."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from builders import make_job
from scene import Scene, running
from trainwright_operator.api import names
from trainwright_operator.api.spec import AcceleratorPool
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.setbacks import deletion_blocked, unreadable
from trainwright_operator.core.times import write_time


def test_a_gang_that_lost_a_pod_while_it_waits_for_the_rest_is_not_looked_at_all_the_time():
    scene = Scene(make_job().nodes(2)).settle()
    placed, waiting = scene.pod(0), scene.pod(1)
    scene.objects.started(placed["metadata"]["name"], scene.now)
    waiting["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    patience = scene.wait(10).settle().last.requeue_after
    scene.wait(patience - 5).delete_pod(0)
    placed["metadata"] |= {
        "deletionTimestamp": write_time(scene.now + timedelta(seconds=600)),
        "deletionGracePeriodSeconds": 600,
    }
    scene.settle().wait(6).settle()
    assert scene.last.requeue_after > 10


def test_a_start_that_no_clock_shows_stops_nothing():
    scene = running()
    scene.status["attempts"][0]["startTime"] = "0001-01-01T00:00:00Z"
    assert scene.settle().state == "Running"
    assert scene.exit_all(0).settle().state == "Succeeded"


STRAYS = {
    "kubectl debug --copy-to --keep-labels": {"name": "debug", "ownerReferences": None},
    "the same, adopted by the Job": {"name": "debug"},
    "the same, of a job whose pods are named alike": {"name": "gpt-corpus-0-1", "ownerReferences": None},
    "a pod that anybody made": {"name": "gpt-corpus-0-1-0-forged", "ownerReferences": None},
    "a pod of another kind": {
        "ownerReferences": [{"kind": "ReplicaSet", "name": "gpt-corpus-0-1", "controller": True}]
    },
    "a pod of a former Job of this name": {
        "ownerReferences": [{"kind": "Job", "name": "gpt-corpus-0-1", "uid": "former", "controller": True}]
    },
    "a pod with the labels of a later attempt": {"labels": {names.LABEL_ATTEMPT: "7"}},
    "an orphan's likeness, while the Job is there": {"generateName": "gpt-corpus-0-1-0-", "ownerReferences": None},
}


@pytest.mark.parametrize("change", STRAYS.values(), ids=STRAYS)
def test_a_stray_pod_has_no_say(change):
    scene = running()
    copied = copy.deepcopy(scene.pod(0))
    meta = copied["metadata"]
    meta |= {"name": "gpt-corpus-0-1-0-stray", **change, "labels": meta["labels"] | change.get("labels", {})}
    scene.objects.pods[meta["name"]] = copied
    before = scene.observed()
    scene.objects.ended(meta["name"], 65, '{"reason":"BadData","exit_code":65}', scene.now)
    assert (before.newest, len(before.attempts[0].pods)) == (1, 2)
    assert (scene.observed(), scene.settle().state, scene.deleted) == (before, "Running", [])
    assert scene.wait(60).exit(0, 0).exit(1, 0).settle().state == "Succeeded"


def orphaned(scene):
    """``kubectl delete job --cascade=orphan``: its pods live on, and belong to nobody."""
    scene.objects.jobs.clear()
    for pod in scene.objects.pods.values():
        pod["metadata"] |= {"generateName": f"{pod['metadata']['name']}-", "name": f"{pod['metadata']['name']}-abcde"}
        del pod["metadata"]["ownerReferences"]
    scene.objects.pods = {pod["metadata"]["name"]: pod for pod in scene.objects.pods.values()}
    return scene.wait(20).settle()


@pytest.mark.parametrize(("codes", "state"), [((0, 0), "Succeeded"), ((1, 0), "Failed"), ((None, 0), "Running")])
def test_pods_that_were_orphaned_train_on_and_their_end_is_the_attempts(codes, state):
    scene = orphaned(running(make_job().nodes(2).with_("spec.maxRestarts", 0)))
    assert scene.state == "Running"
    for index, code in enumerate(codes):
        if code is not None:
            scene.objects.ended(f"gpt-corpus-0-1-{index}-abcde", code, "", scene.now)
    assert (scene.wait(60).settle().state, scene.applied) == (state, ["tj-gpt-corpus", "gpt-corpus-0-1"])


def test_orphans_that_shall_stop_are_named_to_those_who_may_delete_them():
    scene = orphaned(running()).edit("spec.suspend", True).settle()
    assert scene.condition("Reconciling")["message"].endswith(
        "; its pods have lost their Job, so delete them: "
        "kubectl -n default delete pods -l trainwright.dev/job=gpt-corpus,trainwright.dev/attempt=1"
    )


@pytest.mark.parametrize(("code", "state"), [(0, "Succeeded"), (65, "Failed")])
def test_a_status_that_somebody_removes_is_found_again_while_the_jobs_are_there(code, state):
    scene = running().exit_all(code).settle().wait(20).settle()
    applied, scene.status = list(scene.applied), {}
    assert (scene.settle().state, scene.applied) == (state, applied)


def test_orphans_that_are_taken_away_are_a_disruption():
    scene = orphaned(running(make_job().nodes(2).with_("spec.maxRestarts", 0)))
    scene.objects.pods.clear()
    assert scene.wait(20).settle().status["attempts"][0]["reason"] == "JobDeleted"


@pytest.mark.parametrize(("code", "state"), [(0, "Succeeded"), (1, "Pending")])
def test_a_job_that_this_release_cannot_read_is_judged_when_its_attempt_has_ended(code, state):
    scene = running()

    def look():
        stored = scene.builder.manifest() | {"status": scene.status}
        made = unreadable(stored, "unknown field", scene.objects.jobs.values(), scene.objects.pods.values(), scene.now)
        scene.status = made.status
        return made

    assert (look().status["state"], look().apply, look().delete) == ("Running", (), ())
    scene.exit_all(code, step=200)
    scene.objects.sync(scene.now)
    scene.wait(20)
    assert look().status["state"] == state
    assert "endTime" in scene.status["attempts"][0]
    assert scene.status["progress"]["step"] == 200
    assert look() == Plan(status=scene.status), "nothing more happens"


@pytest.mark.parametrize(("planned", "then"), [(None, 30.0), (100.0, 30.0), (5.0, 5.0), (0.0, 0.0)])
def test_a_refused_deletion_puts_off_nothing_else(planned, then):
    scene = running()
    made = deletion_blocked(replace(scene.last, requeue_after=planned), ["Job x may not be deleted: protected"], 30.0)
    assert (made.requeue_after, made.status) == (then, scene.status)


def test_a_missing_pool_is_said():
    scene = Scene(make_job().with_("spec.accelerator.pool", "h100"), pool=None).settle()
    assert scene.holding() == {"Stalled"}
    assert "'h100' does not exist" in scene.condition("Stalled")["message"]
    assert scene.status["display"]["state"] == "Pending (PoolNotFound)"
    scene.pool = AcceleratorPool("h100", "cpu")
    scene.settle()
    assert scene.holding() == {"Reconciling"}


def test_the_deadline_counts_while_something_stands_in_the_way():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 100).with_("spec.maxRestarts", 5))
    scene.pool = None
    scene.exit_all(1).settle()
    assert (scene.state, scene.last.requeue_after) == ("Pending", 97)
    assert scene.wait(97).settle().state == "Failed"


def test_a_job_that_does_not_fit_its_pool_is_told_so():
    scene = Scene(make_job().nodes(1, 9), pool=AcceleratorPool("h100", "nvidia", per_node=8)).settle()
    assert scene.condition("Stalled")["reason"] == "PoolUnusable"
    assert "9 is more than pool 'h100' has in a node (8)" in scene.condition("Stalled")["message"]


def test_losing_the_pool_does_not_touch_an_attempt_at_work():
    scene = running()
    scene.pool = None
    assert scene.settle().state == "Running"


@pytest.mark.parametrize(
    ("owner", "holding", "words"),
    [
        ({"kind": "TrainingJob", "name": "gpt-corpus", "uid": "old"}, {"Reconciling"}, "a deleted TrainingJob"),
        ({"kind": "CronJob", "name": "nightly", "uid": "x"}, {"Stalled"}, "belongs to CronJob/nightly"),
    ],
)
def test_children_of_others_are_not_touched(owner, holding, words):
    scene = Scene(make_job())
    taken = Scene(make_job()).settle().objects.jobs["gpt-corpus-0-1"]
    taken["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    scene.objects.jobs["gpt-corpus-0-1"] = taken
    scene.step()
    assert (scene.applied, scene.holding()) == ([], holding)
    assert words in scene.status["conditions"][0]["message"]


def test_a_crash_between_the_job_and_the_status_adopts_the_job():
    scene = Scene(make_job()).settle()
    scene.status = {}
    scene.wait(4).settle()
    assert scene.applied == ["gpt-corpus-0-1"]
    assert scene.status["attempts"][0]["startTime"] == "2026-01-01T00:00:05Z"


def test_an_adopted_attempt_was_asked_for_what_its_job_says():
    scene = Scene(make_job().training(maxSteps=100))
    scene.step()
    scene.status = {}
    scene.edit("spec.trainingArguments.maxSteps", 200).settle().start_pods().settle()
    assert scene.status["attempts"][0]["maxSteps"] == 100
    scene.exit_all(0, step=100, max_steps=100).settle().wait(30).settle().start_pods().settle()
    assert (scene.state, scene.status["attempts"][1]["maxSteps"]) == ("Running", 200)


@pytest.mark.parametrize("text", ["[1]", "{", '{"version": 9}', '{"version": 1, "name": 1}', None])
def test_an_adopted_attempt_whose_job_cannot_be_read_counts_as_asked_for_what_the_spec_says(text):
    scene = Scene(make_job().training(maxSteps=100))
    scene.step()
    scene.status = {}
    for job in scene.objects.jobs.values():
        job["spec"]["template"]["metadata"]["annotations"]["trainwright.dev/resolved-job"] = text
    assert scene.settle().status["attempts"][0]["maxSteps"] == 100


@pytest.mark.parametrize(
    ("change", "state"), [({"suspend": True}, "Suspended"), ({"activeDeadlineSeconds": 100}, "Failed")]
)
def test_a_crash_between_a_stop_and_the_status_is_no_disruption(change, state):
    scene = running()
    before = scene.status
    for name, value in change.items():
        scene.edit(f"spec.{name}", value)
    scene.wait(101).step()
    scene.status = before
    scene.wait(1).settle().exit_all(143).settle().wait(20).settle()
    assert (scene.state, scene.status["attempts"][0]["outcome"]) == (state, "Stopped")
    assert scene.status["restarts"]["disruptions"] == 0


def test_a_pod_that_was_deleted_before_the_stop_is_a_disruption_still():
    scene = (
        running().delete_pod(0).settle().edit("spec.suspend", True).settle().exit_all(143).settle().wait(20).settle()
    )
    assert (scene.state, scene.status["attempts"][0]["outcome"]) == ("Suspended", "Disrupted")


def test_a_crash_while_restarting_counts_the_restart_once():
    scene = running().exit_all(1)
    scene.step()
    recorded = scene.status
    scene.step()
    scene.status = recorded
    scene.wait(2).settle()
    assert scene.status["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}
    assert sorted(scene.objects.jobs) == ["gpt-corpus-0-1", "gpt-corpus-0-2"]


def test_a_job_that_is_not_seen_yet_is_waited_for():
    scene = Scene(make_job()).settle()
    jobs, pods = dict(scene.objects.jobs), dict(scene.objects.pods)
    scene.objects.jobs.clear()
    scene.objects.pods.clear()
    assert scene.wait(5).step().apply == ()
    scene.objects.jobs, scene.objects.pods = jobs, pods
    assert scene.settle().applied == ["gpt-corpus-0-1"]


def test_a_deleted_job_is_a_disruption():
    scene = running()
    scene.objects.jobs.clear()
    scene.wait(5).settle()
    assert scene.state == "Running", "its pods are still at work"
    scene.objects.pods.clear()
    scene.wait(20).settle()
    assert scene.status["attempts"][0]["reason"] == "JobDeleted"
    assert scene.status["restarts"]["disruptions"] == 1


def test_a_lost_node_is_not_waited_for_beyond_its_grace():
    scene = running().evict(1, "DeletionByTaintManager").settle().exit(0, 143).settle()
    assert scene.applied[-1] == "gpt-corpus-0-1"
    assert scene.last.requeue_after == 60
    scene.wait(60).settle()
    assert scene.applied[-1] == "gpt-corpus-0-2"
    assert scene.status["attempts"][0]["reason"] == "DeletionByTaintManager"


def test_a_started_attempt_is_frozen():
    scene = running().edit("spec.podTemplate", {"env": [{"name": "A", "value": "1"}]})
    scene.pool = replace(scene.pool, image="other")
    assert scene.step().apply == ()


def test_a_job_that_is_being_deleted_is_left_alone():
    scene = running()
    job = replace(scene.job, deletion_timestamp="2026-01-01T00:01:00Z")
    made = plan(job, scene.pool, scene.observed(), scene.now)
    assert (made.apply, made.delete, made.events, made.status) == ((), (), (), scene.status)


def deleted(scene, *finalizers):
    """The API server counts a deletion as a new generation, and keeps the object for its finalizers."""
    generation = scene.builder.manifest()["metadata"]["generation"] + 1
    scene.builder = (
        scene.builder.with_("metadata.deletionTimestamp", "2026-01-01T00:01:00Z")
        .with_("metadata.finalizers", list(finalizers))
        .with_("metadata.generation", generation)
    )
    return scene


def test_a_deleted_job_that_anothers_finalizer_holds_is_stopped_and_says_so():
    scene = deleted(running(), "backup.example/wait").settle()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]
    assert (scene.holding(), scene.status["display"]["state"]) == ({"Reconciling"}, "Stopping (Deleting)")
    assert "whoever set them to remove its finalizers: backup.example/wait" in scene.status["display"]["why"]
    assert scene.status["observedGeneration"] == 2
    scene.exit_all(143).settle().wait(3600).settle()
    assert (scene.applied, scene.status["display"]["state"]) == (
        ["tj-gpt-corpus", "gpt-corpus-0-1"],
        "Stopping (Deleting)",
    )


def test_a_finished_job_that_anothers_finalizer_holds_stays_finished():
    scene = deleted(running().exit_all(0).settle(), "backup.example/wait").settle()
    assert (scene.state, scene.status["display"]["state"]) == ("Succeeded", "Succeeded (Deleting)")
    assert (scene.status["observedGeneration"], scene.holding()) == (2, {"Succeeded"})


@pytest.mark.parametrize("finalizers", [[], ["foregroundDeletion"], ["orphan"], ["orphan", "backup.example/wait"]])
def test_garbage_collection_is_left_to_its_work(finalizers):
    scene = running()
    before = scene.status
    deleted(scene, *finalizers).settle()
    assert (scene.status, scene.deleted) == (before, [])


def test_the_events_tell_the_story():
    scene = running().push(step=7).exit(1, 137).exit(0, 1).settle().start_pods().settle().exit_all(0, step=200).settle()
    assert scene.events == [
        "AttemptStarted: attempt 1 was created",
        "Running: PodsReady: attempt 1 is at work",
        "AttemptFailed: attempt 1 failed at step 7: gpt-corpus-0-1-1 on node-a: exit code 137 (SIGKILL)",
        "AttemptStarted: attempt 2 was created",
        "Running: PodsReady: attempt 2 is at work",
        "Succeeded: TrainingCompleted: trained to step 200",
    ]
