"""What holds an attempt up, and who can help: a person, time, or another's hand; whatever this machine's clock says."""

from __future__ import annotations

from datetime import timedelta

import pytest

from builders import make_job
from scene import Scene, running
from trainwright_operator.core.observe import observe
from trainwright_operator.core.plan import plan
from trainwright_operator.core.waiting import PATIENCE, hold, silent

QUOTA = 'pods "x" is forbidden: exceeded quota: team, requested: {}, used: {}, limited: {}'
REFUSALS = {
    # the Job controller's words, and whether only a person can help
    "others use the quota": (QUOTA.format("pods=1", "pods=4", "pods=4"), False),
    "it can never fit the quota": (
        QUOTA.format("requests.cpu=10,pods=1", "requests.cpu=0,pods=0", "requests.cpu=8,pods=9"),
        True,
    ),
    "it can never fit, in other units": (
        QUOTA.format("requests.memory=2Ti", "requests.memory=0", "requests.memory=900Gi"),
        True,
    ),
    "a quota that cannot be read": (QUOTA.format("pods=one", "pods=0", "pods=2"), False),
    "a quota wants amounts": ("failed quota: team: must specify limits.cpu", True),
    "the namespace's Pod Security": ('violates PodSecurity "restricted:latest": hostPath volumes', True),
    "a webhook says no": ('admission webhook "policy.example" denied the request: no team', True),
    "a webhook that is down": ('failed calling webhook "policy.example": connection refused', True),
    "no such priority class": ("no PriorityClass with name high was found", True),
}


@pytest.mark.parametrize(("words", "stalls"), REFUSALS.values(), ids=REFUSALS)
def test_pods_that_are_refused_wait_for_a_person_unless_room_may_come(words, stalls):
    scene = Scene(make_job()).settle()
    scene.objects.pods.clear()
    involved = {"kind": "Job", "name": "gpt-corpus-0-1"}
    event = {"type": "Warning", "reason": "FailedCreate", "involvedObject": involved, "message": words}
    attempt = observe(scene.job, scene.objects.jobs.values(), [], [event]).attempts[0]
    now, later = (hold(attempt, scene.now + after) for after in (timedelta(seconds=20), PATIENCE))
    assert (now.reason, now.queued, now.stalled, later.stalled) == ("PodsRefused", True, False, stalls)
    assert now.again == (PATIENCE - timedelta(seconds=20) if stalls else None)


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_job_that_somebody_scaled_down_says_so_and_goes_on_when_that_is_undone(wanted):
    scene = running()
    job, pods = scene.objects.jobs["gpt-corpus-0-1"], dict(scene.objects.pods)
    job["spec"]["parallelism"] = wanted
    for index in range(wanted, 2):
        scene.objects.pods.pop(f"gpt-corpus-0-1-{index}")
    scene.objects.sync = lambda now: []  # a Job that has no pods is done for the controller of this machine
    scene.wait(2700).settle()
    assert scene.status["display"]["state"] == "Queued (JobScaledDown)"
    assert scene.holding() == {"Queued", "Stalled"}
    message = scene.condition("Stalled")["message"]
    assert f"was set to {wanted} of its 2 pods (spec.parallelism), and not by this operator" in message
    assert """kubectl patch job gpt-corpus-0-1 --type merge -p '{"spec":{"parallelism":2}}'""" in message
    job["spec"]["parallelism"] = 2
    scene.objects.pods = pods
    del scene.objects.sync
    assert scene.settle().state == "Running"
    assert scene.exit_all(0).settle().state == "Succeeded"


def test_an_attempt_that_ends_while_it_is_scaled_down_has_ended():
    scene = running()
    scene.objects.jobs["gpt-corpus-0-1"]["spec"]["parallelism"] = 1
    scene.objects.pods.pop("gpt-corpus-0-1-1")
    scene.exit(0, 143, ended_by="peer").settle().wait(15).settle()
    assert [one["attempt"] for one in scene.status["attempts"]] == [1, 2]
    assert scene.objects.jobs["gpt-corpus-0-2"]["spec"]["parallelism"] == 2


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}


@pytest.mark.parametrize("behind", [0, 1, 600])
def test_a_clock_that_is_behind_hides_nothing(behind):
    """The pods bear the API server's times, by which they are yet to be created."""
    scene = Scene(make_job().nodes(2)).settle()
    for pod in scene.objects.pods.values():
        pod["status"] = {"phase": "Pending", "conditions": [UNSCHEDULABLE]}
    scene.wait(5 - behind).settle()
    assert scene.status["display"]["state"] == "Queued (Unschedulable)"
    assert "Insufficient cpu" in scene.status["display"]["why"]


def test_a_clock_that_is_behind_puts_no_look_off():
    scene = Scene(make_job()).settle()
    scene.objects.pods.clear()
    assert silent(scene.observed()).left(scene.now) == timedelta(seconds=3)
    assert silent(scene.observed()).left(scene.now - timedelta(seconds=600)) == timedelta(0)


@pytest.mark.parametrize("behind", [0, 600])
def test_an_attempt_ends_by_a_clock_that_is_behind(behind):
    scene = running()
    scene.exit(0, 1, error="boom", ended_by="script")
    scene.objects.sync(scene.now)
    scene.wait(-behind).settle()
    assert scene.state == "Running", "a peer is still to end"
    scene.wait(behind).exit(1, 143, ended_by="peer")
    scene.objects.sync(scene.now)
    scene.wait(15 - behind).settle()
    assert scene.status["attempts"][0]["message"] == "boom"
    assert scene.state == "Restarting"


def test_a_backoff_by_the_clock_of_another_replica_is_no_longer_than_it_was():
    scene = running()
    for _ in range(2):
        scene.start_pods().exit_all(1, ended_by="script").settle()
    scene.wait(-600).settle()
    assert 0 < scene.last.requeue_after <= 10


def test_a_lost_node_reads_as_what_it_is():
    scene = running(make_job().nodes(2))
    scene.pod(1)["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    scene.evict(1, "DeletionByTaintManager").settle()
    assert scene.state == "Running", "node 0 still works"
    scene.exit(0, 1, error="closed by peer", ended_by="lost").settle()
    assert scene.status["display"]["state"] == "Restarting"
    assert scene.condition("Restarting")["reason"] == "DeletionByTaintManager"
    assert scene.condition("Restarting")["message"] == (
        "attempt 1 was disrupted: gpt-corpus-0-1-1 on node-a: DeletionByTaintManager: evicted; "
        "the next attempt waits for gpt-corpus-0-1-1 to end, until 2026-01-01T00:01:08Z at the latest"
    )
    before = scene.status
    assert scene.wait(30).settle().status == before, "told once"
    assert (scene.wait(30).settle().state, scene.applied[-1]) == ("Restarting", "gpt-corpus-0-2")


def test_a_node_that_was_lost_unseen_is_waited_for_as_well():
    scene = running(make_job())
    scene.pod()["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    scene.evict(0, "DeletionByTaintManager")
    status = scene.status
    made = plan(scene.job, scene.pool, scene.observed(), scene.now)
    assert (made.status["state"], status["state"]) == ("Restarting", "Running")
