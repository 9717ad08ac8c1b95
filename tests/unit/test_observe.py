"""What is seen of Jobs and pods: on what a real cluster gave, and on what it gives rarely."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from builders import make_job
from fixtures import load, training_job
from scene import START, Scene
from trainwright_operator.api.spec import parse_job
from trainwright_operator.core import observe as observing
from trainwright_operator.core.causes import cause_of, succeeded
from trainwright_operator.core.history import Outcome
from trainwright_operator.core.observe import JobState, Observed, Wait, observe
from trainwright_operator.core.waiting import hold, silent


def seen(case: str, moment: str) -> Observed:
    """A recorded moment as it is observed."""
    found = load(case)[moment]
    stored = training_job(case)
    stored["metadata"]["namespace"] = "default"
    return observe(parse_job(stored), [found.job], found.pods, found.events)


JUDGED = [
    # case, moment, state of the Job, outcome, reason, exit code
    ("succeeded", "one pod done", JobState.ACTIVE, None, None, None),
    ("succeeded", "complete", JobState.COMPLETE, None, None, None),
    ("failed", "running", JobState.ACTIVE, None, None, None),
    ("failed", "failing", JobState.ENDING, Outcome.FAILED, "Error", 1),
    ("failed", "failed", JobState.FAILED, Outcome.FAILED, "Error", 1),
    ("bad-configuration", "failed", JobState.FAILED, Outcome.FAILED, "BadConfiguration", 64),
    ("killed", "failed", JobState.FAILED, Outcome.FAILED, "Error", 137),
    ("out-of-memory", "failed", JobState.FAILED, Outcome.FAILED, "OOMKilled", 137),
    ("evicted", "terminating", JobState.ACTIVE, Outcome.DISRUPTED, "EvictionByEvictionAPI", None),
    ("evicted", "failed", JobState.FAILED, Outcome.DISRUPTED, "EvictionByEvictionAPI", 143),
    ("drained", "failed", JobState.FAILED, Outcome.DISRUPTED, "EvictionByEvictionAPI", 143),
    ("deleted-exits-0", "counted as done", JobState.ACTIVE, None, None, None),
    ("deleted", "failing", JobState.ENDING, Outcome.DISRUPTED, "PodDeleted", None),
    ("deleted", "failed", JobState.FAILED, None, None, None),  # its pods are gone: what was seen before decides
    ("node-lost", "not ready", JobState.ACTIVE, None, None, None),
    ("node-lost", "terminating", JobState.ACTIVE, Outcome.DISRUPTED, "DeletionByTaintManager", None),
    ("node-lost", "failing", JobState.ENDING, Outcome.DISRUPTED, "DeletionByTaintManager", None),
]


@pytest.mark.parametrize(("case", "moment", "state", "outcome", "reason", "code"), JUDGED)
def test_recorded_attempts_are_judged(case, moment, state, outcome, reason, code):
    attempt = seen(case, moment).attempts[0]
    assert attempt.jobs[0].state is state
    cause = cause_of(attempt)
    assert (cause and cause.outcome, cause and cause.reason, cause and cause.exit_code) == (outcome, reason, code)
    assert succeeded(attempt) == (state is JobState.COMPLETE)


def test_an_attempt_at_work_is_seen_with_its_ready_pods():
    attempt = seen("killed", "running").attempts[0]
    assert attempt.at_work
    assert [(pod.index, pod.ready, pod.end, pod.wait) for pod in attempt.pods] == [
        (0, True, None, None),
        (1, True, None, None),
    ]
    assert all(pod.node and pod.created for pod in attempt.pods)


def test_a_termination_message_is_read_from_its_pod():
    word = seen("termination-message", "complete").attempts[0].pods[0].end.word
    assert (word.step, word.max_steps, word.metrics) == (20, 20, {"loss": 1.5})
    said = cause_of(seen("bad-configuration", "failed").attempts[0])
    assert said.message == "trainingArguments.learningRate: negative"


def test_unschedulable_pods_are_queued_with_the_schedulers_message():
    attempt = seen("unschedulable", "waiting").attempts[0]
    found = hold(attempt, datetime.now(UTC))
    assert (found.reason, found.queued, found.stalled) == ("Unschedulable", True, False)
    assert found.message.startswith("2 of 2 pods: Unschedulable: 0/")
    assert "nodes are available" in found.message


def test_recorded_images_that_cannot_be_pulled_do_not_flap():
    refused, backing_off = (seen("image-missing", moment).attempts[0] for moment in ("refused", "backing off"))
    now = refused.pods[0].created
    assert hold(refused, now) == hold(backing_off, now)
    assert "no-such-image:1: not found; check the image" in hold(refused, now).message


def test_a_recorded_job_that_somebody_suspended_is_queued():
    found = hold(seen("suspended", "suspended").attempts[0], datetime.now(UTC))
    assert (found.reason, found.queued, found.stalled) == ("JobSuspended", True, False)
    assert "not by this operator" in found.message
    assert hold(seen("suspended", "resumed").attempts[0], datetime.now(UTC)) is None


def test_the_events_of_an_ended_job_hold_nothing_up():
    assert hold(seen("deleted", "failed").attempts[0], datetime.now(UTC)) is None


# What a cluster gives rarely


def waiting_pod(reason: str, message: str = "", **change) -> Scene:
    scene = Scene(make_job()).settle()
    state = {"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}
    scene.pod()["status"] = {"phase": "Pending", "containerStatuses": [state], **change}
    return scene


BACK_OFF = 'Back-off pulling image "x:1": ErrImagePull: x:1: not found'


@pytest.mark.parametrize(
    ("scene", "reason", "words", "stalls"),
    [
        (waiting_pod("ImagePullBackOff", BACK_OFF), "ImagePullBackOff", "x:1: not found; check the image", True),
        (waiting_pod("ErrImagePull", "x:1: not found"), "ImagePullBackOff", "x:1: not found; check the image", True),
        (waiting_pod("InvalidImageName", "bad"), "InvalidImageName", "check the image", True),
        (
            waiting_pod("CreateContainerConfigError", 'secret "hub" not found'),
            "CreateContainerConfigError",
            'secret "hub" not found; create the Secret hub',
            True,
        ),
        (waiting_pod("ContainerCreating"), None, "", False),
    ],
)
def test_a_pod_that_cannot_start_says_why_and_how_to_fix_it(scene, reason, words, stalls):
    found = hold(scene.observed().attempts[0], scene.now)
    assert (found and found.reason) == reason
    if found:
        assert words in found.message
        later = hold(scene.observed().attempts[0], scene.now + timedelta(seconds=61))
        assert (found.stalled, later.stalled) == (False, stalls)
        assert found.again == timedelta(seconds=60)


def test_the_reason_is_read_from_events_where_the_pod_has_none():
    scene = waiting_pod("ContainerCreating")
    event = {
        "type": "Warning",
        "involvedObject": {"kind": "Pod", "name": "gpt-corpus-0-1-0"},
        "message": 'MountVolume.SetUp failed: configmap "code" not found',
    }
    observed = observe(scene.job, scene.objects.jobs.values(), scene.objects.pods.values(), [event])
    assert 'configmap "code" not found' in hold(observed.attempts[0], scene.now).message


def test_the_newest_event_tells_and_the_schedulers_do_not_outlive_their_truth():
    scene = waiting_pod("ContainerCreating")

    def event(reason, second, message):
        involved = {"kind": "Pod", "name": "gpt-corpus-0-1-0"}
        about = {"type": "Warning", "reason": reason, "involvedObject": involved, "message": message}
        return about | {"lastTimestamp": f"2026-01-01T00:00:{second:02}Z"}

    told = [
        event("FailedMount", 7, "second"),
        event("FailedMount", 5, "first"),
        event("FailedScheduling", 9, "no volume"),
    ]
    observed = observe(scene.job, scene.objects.jobs.values(), scene.objects.pods.values(), told)
    assert observed.attempts[0].pods[0].wait == Wait("ContainerCreating", "second")


def test_a_job_that_may_create_no_pods_says_why():
    scene = Scene(make_job()).settle()
    scene.objects.pods.clear()
    involved = {"kind": "Job", "name": "gpt-corpus-0-1"}
    event = {
        "type": "Warning",
        "reason": "FailedCreate",
        "involvedObject": involved,
        "message": "exceeded quota: cpus",
    }
    told = observe(scene.job, scene.objects.jobs.values(), [], [event]).attempts[0]
    said = "Job gpt-corpus-0-1 may not create its pods: exceeded quota: cpus; wait until other pods end"
    assert hold(told, scene.now).message.startswith(said)
    untold = scene.observed().attempts[0]
    assert hold(untold, scene.now) is None
    assert "kubectl describe job gpt-corpus-0-1" in hold(untold, scene.now + timedelta(seconds=5)).message


def test_a_job_that_may_create_only_some_of_its_pods_says_how_many_are_missing():
    scene = Scene(make_job().nodes(3)).settle()
    scene.objects.pods.pop("gpt-corpus-0-1-2")
    later = scene.now + timedelta(seconds=5)
    attempt = scene.observed().attempts[0]
    assert silent(scene.observed()).kind == "Job"
    assert hold(attempt, later).message.startswith("Job gpt-corpus-0-1 lacks 1 of its 3 pods: `kubectl describe job")


def test_a_job_that_the_job_controller_has_not_taken_up_is_not_told_as_refused():
    scene = Scene(make_job()).settle()
    scene.objects.pods.clear()
    scene.objects.jobs["gpt-corpus-0-1"]["status"] = {}
    attempt = scene.observed().attempts[0]
    assert hold(attempt, scene.now + timedelta(seconds=30)) is None
    assert silent(scene.observed()).left(scene.now) == timedelta(seconds=60)
    found = hold(attempt, scene.now + timedelta(seconds=60))
    assert found.reason == "JobNotStarted"
    assert "is kube-controller-manager at work?" in found.message


def test_a_job_that_has_pods_was_taken_up_though_its_status_does_not_say_so_yet():
    scene = Scene(make_job().nodes(2)).settle()
    scene.objects.pods.pop("gpt-corpus-0-1-1")
    scene.objects.jobs["gpt-corpus-0-1"]["status"] = {}
    found = hold(scene.observed().attempts[0], scene.now + timedelta(seconds=60))
    assert (found.reason, found.message[:38]) == ("PodsRefused", "Job gpt-corpus-0-1 lacks 1 of its 2 po")


def test_pods_that_are_being_created_one_after_another_are_not_told_as_refused():
    """The Job controller creates 20 a second, so a gang of 1,000 takes it most of a minute."""
    scene = Scene(make_job().nodes(3)).settle()
    scene.objects.pods.pop("gpt-corpus-0-1-2")
    scene.objects.pods["gpt-corpus-0-1-1"]["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z"
    newest = START.replace(minute=1, second=0)
    attempt = scene.observed().attempts[0]
    assert hold(attempt, newest + timedelta(seconds=2)) is None
    assert silent(scene.observed()).left(newest) == timedelta(seconds=3)
    assert hold(attempt, newest + timedelta(seconds=3)).reason == "PodsRefused"


@pytest.mark.parametrize("statuses", [[], [143], [137]])
def test_an_eviction_for_the_pods_own_excess_is_its_own_failure(statuses):
    scene = Scene(make_job()).settle().start_pods()
    scene.evict(0, "TerminationByKubelet")
    assert scene.observed().attempts[0].pods[0].disruption == Wait("TerminationByKubelet", "evicted")
    message = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
    ended = [{"name": "trainer", "state": {"terminated": {"exitCode": code}}} for code in statuses]
    scene.pod()["status"] |= {"phase": "Failed", "reason": "Evicted", "message": message, "containerStatuses": ended}
    del scene.pod()["metadata"]["deletionTimestamp"]
    cause = cause_of(scene.observed().attempts[0])
    assert (cause.outcome, cause.reason) == (Outcome.FAILED, "Evicted")
    assert "exceeds the total limit" in cause.message


def test_children_of_a_former_job_of_this_name_are_not_ours():
    scene = Scene(make_job()).settle()
    newcomer = make_job().with_("metadata.uid", "0d9b8f3e-6a5c-4d1e-9f70-000000000002").build()
    observed = observe(newcomer, scene.objects.jobs.values(), scene.objects.pods.values())
    assert observed.attempts == ()
    assert observed.foreign == {"gpt-corpus-0-1": "TrainingJob/gpt-corpus"}


def test_a_pod_of_a_lost_node_is_given_up_after_its_grace():
    pod = Scene(make_job()).settle().start_pods().delete_pod(0).observed().attempts[0].pods[0]
    assert pod.deletion_requested == START
    assert pod.alive(START + timedelta(seconds=59))
    assert not pod.alive(START + timedelta(seconds=60))


def test_an_init_container_that_failed_tells_why_the_trainer_never_ran():
    scene = Scene(make_job().with_("spec.maxRestarts", 0)).settle()
    message = "cannot fetch\nno space left\n"
    state = {"exitCode": 3, "reason": "Error", "message": message, "finishedAt": "2026-01-01T00:00:06Z"}
    scene.pod(0)["spec"]["initContainers"] = [{"name": "mesh", "restartPolicy": "Always"}, {"name": "fetch"}]
    scene.pod(0)["status"] = {
        "phase": "Failed",
        "initContainerStatuses": [
            {"name": "mesh", "state": {"terminated": {"exitCode": 143}}},
            {"name": "fetch", "state": {"terminated": state}},
        ],
        "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
    }
    entry = scene.wait(5).settle().status["attempts"][0]
    assert entry["message"] == "init container fetch ended with exit code 3: no space left"
    assert (scene.state, entry["outcome"], entry["reason"]) == ("Failed", "Failed", "Error")


def test_a_container_that_has_ended_is_the_end_of_its_pod():
    scene = Scene(make_job()).settle().start_pods().exit(0, 1)
    scene.pod()["status"]["phase"] = "Running"
    assert scene.observed().attempts[0].pods[0].end.exit_code == 1


def test_strange_objects_do_not_stop_the_plan():
    strange = {"metadata": {"name": "x", "labels": {"trainwright.dev/attempt": "one"}}, "status": None, "spec": None}
    observed = observe(make_job().build(), [strange], [strange])
    assert (observed.attempts, dict(observed.foreign)) == ((), {"x": "nobody"})


def test_a_pod_of_thousands_is_looked_at_again_only_when_it_has_changed(monkeypatch):
    scene = Scene(make_job().nodes(3)).settle()
    pods = [
        {**one, "metadata": {**one["metadata"], "uid": f"pod-{number}", "resourceVersion": "7"}}
        for number, one in enumerate(scene.objects.pods.values())
    ]
    jobs = list(scene.objects.jobs.values())
    first = observe(scene.job, jobs, pods)
    read, count = observing._pod, []
    monkeypatch.setattr(observing, "_pod", lambda *given: count.append(given[0]) or read(*given))
    assert observe(scene.job, jobs, pods) == first
    assert count == []
    node = {**pods[1], "spec": {**pods[1]["spec"], "nodeName": "n"}}
    pods[1] = {**node, "metadata": {**node["metadata"], "resourceVersion": "8"}}
    assert observe(scene.job, jobs, pods).attempts[0].pods[1].node == "n"
    assert len(count) == 1
