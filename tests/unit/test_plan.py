"""The plan over a job's whole life: what is created, recorded, restarted, stopped and finished, and in which order."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_job
from scene import Scene, running

ENDED = {"Succeeded", "Failed"}


def test_a_new_job_takes_a_service_a_job_and_one_status():
    scene = Scene(make_job().nodes(2))
    first = scene.step()
    assert scene.applied == ["tj-gpt-corpus", "gpt-corpus-0-1"]
    again = scene.step()
    assert (again.apply, again.delete, again.status, again.events) == ((), (), first.status, ())


def test_one_node_needs_no_service():
    assert [child["kind"] for child in Scene(make_job()).step().apply] == ["Job"]


def test_a_job_whose_pods_all_exit_0_succeeds():
    scene = (
        running()
        .push(step=200, maxSteps=200)
        .wait(60)
        .exit_all(0, step=200, max_steps=200, metrics={"loss": 1.5})
        .settle()
    )
    assert scene.state == "Succeeded"
    assert scene.holding() == {"Succeeded"}
    assert scene.status["attempts"][0]["outcome"] == "Succeeded"
    assert scene.status["display"]["step"] == "200/200"
    assert scene.status["completionTime"] == "2026-01-01T00:01:08Z"
    assert scene.last.requeue_after is None


def test_the_ended_attempt_is_recorded_before_the_next_one_is_created():
    scene = running().push(step=140).wait(5).exit(1, 137).exit(0, 143)
    scene.step()
    recorded = scene.step()
    assert recorded.apply == ()
    assert recorded.requeue_after == 0
    assert scene.status["attempts"][0]["endTime"]
    created = scene.step()
    assert [child["metadata"]["name"] for child in created.apply] == ["tj-gpt-corpus", "gpt-corpus-0-2"]
    assert scene.status["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}
    entry = scene.status["attempts"][0]
    assert (entry["pod"], entry["node"], entry["exitCode"], entry["step"]) == ("gpt-corpus-0-1-1", "node-a", 137, 140)


def test_resolved_job_carries_the_attempt():
    scene = running().exit(1, 1).exit(0, 1).settle()
    annotations = scene.objects.jobs["gpt-corpus-0-2"]["spec"]["template"]["metadata"]["annotations"]
    assert json.loads(annotations["trainwright.dev/resolved-job"])["attempt"] == 2


def test_a_job_fails_after_its_last_restart():
    scene = running(make_job().nodes(2).with_("spec.maxRestarts", 2))
    for _ in range(3):
        scene.exit_all(1, error="ValueError: boom").settle().wait(600).settle().start_pods().wait(1).settle()
    assert scene.state == "Failed"
    assert scene.condition("Failed")["reason"] == "TooManyRestarts"
    assert "2 restarts used" in scene.condition("Failed")["message"]
    assert "ValueError: boom" in scene.condition("Failed")["message"]
    assert scene.holding() == {"Failed", "Stalled"}
    assert scene.status["restarts"]["counted"] == 2


def test_raising_max_restarts_on_a_failed_job_goes_on():
    scene = running(make_job().with_("spec.maxRestarts", 0)).exit_all(1).settle()
    assert scene.state == "Failed"
    scene.edit("spec.maxRestarts", 1).settle()
    assert scene.state == "Restarting"
    assert "completionTime" not in scene.status
    assert scene.applied[-1] == "gpt-corpus-0-2"


@pytest.mark.parametrize(("code", "reason"), [(64, "BadConfiguration"), (65, "BadData")])
def test_permanent_codes_end_the_job_at_once(code, reason):
    scene = running().exit(0, code, error="dataset.source: no file matches /data/*.txt").exit(1, 1).settle()
    assert scene.state == "Failed"
    assert scene.condition("Failed")["reason"] == reason
    assert "no file matches" in scene.condition("Failed")["message"]
    assert scene.applied == ["tj-gpt-corpus", "gpt-corpus-0-1"]


def test_disruptions_are_not_counted():
    scene = running(make_job().nodes(2).with_("spec.maxRestarts", 0))
    for _ in range(4):
        scene.evict(1).settle().wait(4).exit_all(143).settle().wait(600).settle().start_pods().wait(1).settle()
    assert scene.state == "Running"
    assert scene.status["restarts"] == {"total": 4, "counted": 0, "disruptions": 4}
    assert scene.status["display"]["restarts"] == "0 (4)"


def test_evidence_outlives_its_pod():
    """An evicted pod is gone before its Job says Failed; what it was marked with is already in the status."""
    scene = running().evict(1).settle()
    assert scene.status["attempts"][0]["outcome"] == "Disrupted"
    del scene.objects.pods["gpt-corpus-0-1-1"]
    scene.wait(2).exit(0, 1).wait(1).settle()
    assert scene.status["attempts"][0]["reason"] == "EvictionByEvictionAPI"
    assert scene.status["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}


def test_quick_failures_back_off():
    scene = running(make_job().with_("spec.maxRestarts", 9))
    delays = []
    for _ in range(8):
        scene.exit_all(1).settle()
        delays.append(0 if scene.status["nodes"]["active"] else scene.last.requeue_after)
        scene.wait(400).settle().start_pods().wait(3).settle()
    assert delays == [0, 10, 20, 40, 80, 160, 300, 300]


def test_a_long_attempt_ends_the_backoff():
    scene = running().exit_all(1).settle().start_pods().settle().wait(3600).exit_all(1).settle()
    assert scene.applied[-1] == "gpt-corpus-0-3"


def test_suspend_saves_then_stops_and_resume_is_a_new_attempt():
    scene = running().edit("spec.suspend", True).settle()
    assert scene.state == "Stopping"
    assert scene.deleted == ["Job/gpt-corpus-0-1"]
    scene.wait(5).exit_all(143, step=77, checkpoint="checkpoint-77").settle()
    assert scene.state == "Suspended"
    assert scene.holding() == {"Suspended"}
    assert "startTime" not in scene.status
    assert scene.status["checkpoint"]["path"] == "checkpoint-77"
    assert scene.status["attempts"][0]["outcome"] == "Stopped"
    scene.wait(999).edit("spec.suspend", False).settle()
    assert (scene.state, scene.applied[-1]) == ("Starting", "gpt-corpus-0-2")
    assert scene.status["restarts"]["total"] == 0


def test_a_change_of_mind_while_stopping_starts_anew_after_the_stop():
    scene = running().edit("spec.suspend", True).settle().edit("spec.suspend", False).settle()
    assert scene.state == "Stopping"
    scene.wait(5).exit_all(143).settle()
    assert scene.applied[-1] == "gpt-corpus-0-2"
    assert scene.status["restarts"]["total"] == 0


def test_created_suspended_makes_nothing():
    scene = Scene(make_job().suspended()).settle()
    assert (scene.state, scene.applied) == ("Suspended", [])


def test_suspending_a_job_that_failed_by_its_deadline_comes_too_late():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 60)).wait(57).settle().wait(2).exit_all(143)
    completed = scene.settle().status["completionTime"]
    scene.wait(9).edit("spec.suspend", True).settle()
    assert (scene.state, scene.status["completionTime"]) == ("Failed", completed)
    scene.edit("spec.suspend", False).settle()
    assert (scene.state, scene.applied) == ("Failed", ["gpt-corpus-0-1"])


def test_a_job_suspended_in_time_stays_so_after_its_deadline():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 60)).wait(50).edit("spec.suspend", True).settle()
    scene.wait(15).exit_all(143).settle()
    assert scene.state == "Suspended"
    scene.wait(999).settle().edit("spec.suspend", False).settle()
    assert (scene.state, scene.applied[-1]) == ("Starting", "gpt-corpus-0-2")


def test_a_job_past_its_deadline_is_stopped_and_fails():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 60))
    assert scene.last.requeue_after == 57
    scene.wait(57).settle()
    assert scene.state == "Stopping"
    scene.wait(2).exit_all(143).settle()
    assert scene.condition("Failed")["reason"] == "DeadlineExceeded"
    scene.edit("spec.activeDeadlineSeconds", 600).settle()
    assert scene.applied[-1] == "gpt-corpus-0-2"


def test_finishing_while_being_stopped_counts_as_success():
    scene = running().edit("spec.suspend", True).settle().wait(1).exit_all(0, step=200).settle()
    assert scene.state == "Succeeded"


def test_time_to_live_deletes_children():
    scene = running(make_job().nodes(2).with_("spec.ttlSecondsAfterFinished", 100)).exit_all(0).settle()
    assert scene.last.requeue_after == 100
    scene.wait(100).step()
    assert scene.deleted == ["Service/tj-gpt-corpus", "Job/gpt-corpus-0-1"]
    scene.objects.jobs.clear()
    scene.objects.pods.clear()
    assert scene.step().delete == ()
    assert scene.state == "Succeeded"


def test_no_time_to_live_still_outlives_the_status():
    scene = running(make_job().with_("spec.ttlSecondsAfterFinished", 0)).exit_all(0)
    scene.step()
    assert (scene.step().delete, scene.last.requeue_after, scene.state) == ((), 0, "Succeeded")
    scene.step()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]


def test_delete_after_finished_deletes_the_job_itself():
    job = make_job().with_("spec.ttlSecondsAfterFinished", 1).with_("spec.deleteAfterFinished", True)
    scene = running(job).exit_all(0).settle().wait(1)
    assert [(one.kind, one.name) for one in scene.plan().delete] == [("TrainingJob", "gpt-corpus")]


def test_the_last_three_ended_attempts_keep_their_jobs():
    scene = running(make_job().with_("spec.maxRestarts", 9))
    for _ in range(5):
        scene.exit_all(1).settle().wait(400).settle().start_pods().wait(3).settle()
    assert sorted(scene.objects.jobs) == [f"gpt-corpus-0-{attempt}" for attempt in (3, 4, 5, 6)]


@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [
        ({"maxSteps": 200}, {"maxSteps": 400}, True),
        ({"maxSteps": 200}, {"maxSteps": 200}, False),
        ({"maxSteps": -1, "numTrainEpochs": 1}, {"maxSteps": -1, "numTrainEpochs": 2}, True),
        ({"maxSteps": -1}, {"maxSteps": -1, "numTrainEpochs": 3.5}, True),
        ({"maxSteps": 200}, {"maxSteps": 200, "numTrainEpochs": 9}, False),
    ],
)
def test_raising_the_target_of_a_finished_job_trains_on(before, after, goes_on):
    scene = running(make_job().training(**before)).exit_all(0).settle()
    assert scene.state == "Succeeded"
    scene.builder = scene.builder.training(**after)
    scene.edit("spec.ttlSecondsAfterFinished", 5000).settle()
    assert (scene.applied[-1] == "gpt-corpus-0-2") == goes_on
    assert scene.status["restarts"]["total"] == 0


def test_the_deadline_of_what_is_added_counts_anew():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 60)).exit_all(0).settle().wait(9999)
    assert scene.settle().state == "Succeeded"
    scene.edit("spec.trainingArguments.maxSteps", 400).settle()
    assert (scene.state, scene.applied[-1]) == ("Starting", "gpt-corpus-0-2")


def test_the_deadline_of_what_is_added_counts_anew_after_a_crash_between_job_and_status():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 60)).exit_all(0).settle().wait(9999).settle()
    made = scene.edit("spec.trainingArguments.maxSteps", 400).plan()
    scene.objects.apply(made.apply, scene.now)
    scene.wait(1).settle()
    assert (scene.state, scene.deleted) == ("Starting", [])
    assert scene.last.requeue_after == 59


def test_a_target_that_is_raised_with_no_pool_waits_for_the_pool():
    scene = running(make_job().with_("spec.activeDeadlineSeconds", 60)).exit_all(0).settle().wait(9999).settle()
    scene.pool = None
    scene.edit("spec.trainingArguments.maxSteps", 400).settle()
    assert (scene.status["display"]["state"], scene.last.requeue_after) == ("Pending (PoolNotFound)", None)


def test_raising_the_target_of_a_job_at_work_takes_effect_when_its_attempt_ends():
    scene = running(make_job()).edit("spec.trainingArguments.maxSteps", 400).settle()
    assert scene.applied == ["gpt-corpus-0-1"]
    scene.exit_all(0, step=200).settle()
    assert scene.applied == ["gpt-corpus-0-1", "gpt-corpus-0-2"]


# Whatever happens, it ends, and the counts are right

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["start", "exit", "evict", "vanish", "suspend", "resume", "push", "crash", "wait"]),
        st.integers(0, 1),
        st.sampled_from([0, 1, 64, 124, 137, 143]),
    ),
    max_size=25,
)


@settings(max_examples=20)
@given(ACTIONS)
def test_any_history_ends_with_the_counts_right(actions):
    scene = Scene(make_job().nodes(2).with_("spec.maxRestarts", 2)).settle()
    for action, index, code in actions:
        _act(scene, action, index, code)
        scene.wait(7).settle()
        _check(scene)
    scene.edit("spec.suspend", False).settle()
    for _ in range(4):
        scene.wait(500).settle().start_pods().settle().exit_all(1).settle().wait(90).settle()
        _check(scene)
    assert scene.state in ENDED


def _act(scene: Scene, action: str, index: int, code: int) -> None:
    pods = list(scene.objects.pods.values())
    alive = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
    newest = [pod for pod in alive if pod["metadata"]["name"].endswith(f"-{index}")]
    if action == "start":
        scene.start_pods()
    elif action in ("suspend", "resume"):
        scene.edit("spec.suspend", action == "suspend")
    elif action == "push":
        scene.push(step=code)
    elif action == "crash":
        scene.status = {**scene.status, "attempts": scene.status["attempts"]} if "attempts" in scene.status else {}
    elif newest and action == "exit":
        scene.objects.ended(newest[-1]["metadata"]["name"], code, "", scene.now)
        scene.objects.sync(scene.now)
    elif newest and action == "evict":
        scene.evict_pod(newest[-1])
    elif newest and action == "vanish":
        del scene.objects.pods[newest[-1]["metadata"]["name"]]
        scene.objects.sync(scene.now)


def _check(scene: Scene) -> None:
    attempts, restarts = scene.status.get("attempts", []), scene.status["restarts"]
    assert [entry["attempt"] for entry in attempts] == sorted({entry["attempt"] for entry in attempts})
    assert all("endTime" in entry for entry in attempts[:-1]), "only the newest attempt may be open"
    assert restarts["total"] == restarts["counted"] + restarts["disruptions"]
    assert restarts["counted"] <= 2
    active = [name for name, job in scene.objects.jobs.items() if not job["status"].get("conditions")]
    alive = [name for name in active if "deletionTimestamp" not in scene.objects.jobs[name]["metadata"]]
    assert len(alive) <= 1, "two attempts at work"
    before = attempts[:-1]
    if len(attempts) < 10:
        assert restarts["counted"] == sum(entry["outcome"] == "Failed" for entry in before)
        assert restarts["disruptions"] == sum(entry["outcome"] == "Disrupted" for entry in before)
    assert len(scene.holding() & {"Running", "Suspended", "Succeeded", "Failed", "Restarting"}) <= 1


def test_the_plan_loads_nothing_that_touches_a_cluster_or_this_machine():
    probe = "import sys, trainwright_operator.core.plan; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    shell = {"kopf", "aiohttp", "kubernetes", "cryptography", "prometheus_client", "rich", "torch", "transformers"}
    assert not (shell | {"asyncio", "socket", "ssl", "subprocess"}) & set(loaded)
