"""A container that somebody injects and that does not end: the trainer's end is the pod's, and no node is held."""

from __future__ import annotations

import pytest

from builders import make_job
from cluster.paths import CHECKOUT
from scene import Scene, running
from trainwright_operator.api import names
from trainwright_operator.core import sidecars

PATIENCE = sidecars.PATIENCE.total_seconds()


def exit_beside(scene: Scene, index: int, code: int, **word) -> Scene:
    """The trainer ends, and the sidecar goes on: for the kubelet the pod runs."""
    scene.exit(index, code, **word)
    pod = scene.pod(index)
    beside = {"name": "istio-proxy", "ready": True, "state": {"running": {}}}
    pod["status"] |= {"phase": "Running", "containerStatuses": [beside, *pod["status"]["containerStatuses"]]}
    return scene.settle()


def meshed(pods: int = 1, **spec) -> Scene:
    job = make_job().nodes(pods)
    for name, value in spec.items():
        job = job.with_(f"spec.{name}", value)
    return running(job)


def test_a_job_whose_trainers_have_ended_is_done_and_its_pods_are_let_go():
    scene = exit_beside(exit_beside(meshed(2), 0, 0, step=200), 1, 0)
    assert (scene.state, scene.deleted, scene.last.requeue_after) == ("Running", [], PATIENCE)
    scene.wait(PATIENCE).step()
    assert (scene.state, scene.deleted, scene.last.requeue_after) == ("Succeeded", [], 0)
    scene.step()
    assert scene.deleted == ["Job/gpt-corpus-0-1"]
    message = scene.condition("Succeeded")["message"]
    assert message.startswith("trained to step 200; container istio-proxy went on after the trainer had ended")
    assert scene.status["completionTime"]


def test_a_sidecar_that_ends_by_itself_changes_nothing():
    scene = exit_beside(meshed(), 0, 0).wait(PATIENCE - 1)
    scene.exit(0, 0).settle()
    assert (scene.state, scene.deleted, scene.condition("Succeeded")["message"]) == (
        "Succeeded",
        [],
        "training is complete",
    )


def test_a_crash_between_the_verdict_and_the_deletion_loses_neither():
    scene = exit_beside(meshed(), 0, 0).wait(PATIENCE)
    scene.step()
    recorded = scene.status
    scene.step()
    scene.objects.jobs.clear()
    scene.objects.pods.clear()
    scene.status = recorded
    assert scene.wait(60).settle().state == "Succeeded"


def test_nothing_is_let_go_of_before_its_end_is_written():
    """The write may be lost: the next leader sees the same pods, and says the same."""
    scene = exit_beside(meshed(), 0, 0).wait(PATIENCE)
    before = scene.status
    scene.step()
    assert scene.deleted == []
    scene.status = before
    assert scene.settle().state == "Succeeded"


@pytest.mark.parametrize(("limit", "state"), [(1, "Restarting"), (0, "Failed")])
def test_a_failure_beside_a_sidecar_ends_the_attempt_though_its_peer_waits(limit, state):
    scene = exit_beside(meshed(2, maxRestarts=limit), 0, 1, error="boom", ended_by="script")
    assert (scene.state, scene.deleted) == ("Running", [])
    scene.wait(PATIENCE).step()
    assert scene.deleted == [], "first the cause is written"
    assert scene.settle().deleted == ["Job/gpt-corpus-0-1"]
    scene.pod(0)["status"]["phase"] = "Failed"  # the kubelet ended the sidecar
    scene.wait(5).exit(1, 143, ended_by="signal").settle()
    assert (scene.state, scene.status["restarts"]["counted"]) == (state, limit)
    first = scene.status["attempts"][0]
    assert (first["outcome"], first["pod"], first["exitCode"]) == ("Failed", "gpt-corpus-0-1-0", 1)
    assert first["message"].startswith("boom; container istio-proxy went on after the trainer had ended")


def test_a_pod_that_is_done_waits_for_peers_that_still_train():
    scene = exit_beside(meshed(2), 0, 0).wait(3600).settle()
    assert (scene.state, scene.deleted) == ("Running", [])
    exit_beside(scene, 1, 0).wait(PATIENCE).settle()
    assert scene.state == "Succeeded"


def test_a_deletion_that_is_refused_is_not_tried_without_a_pause():
    scene = exit_beside(meshed(2), 0, 1).wait(PATIENCE)
    scene.step()
    made = scene.plan()
    assert ([one.kind for one in made.delete], made.requeue_after) == (["Job"], None)


def test_a_native_sidecar_keeps_no_pod():
    scene = meshed().exit(0, 0)
    pod = scene.pod()
    pod["status"] |= {"phase": "Running", "initContainerStatuses": [{"name": "istio-proxy", "state": {"running": {}}}]}
    (seen,) = scene.observed().attempts[0].pods
    assert (seen.kept_by, seen.end.exit_code) == ((), 0)
    assert names.CONTAINER not in seen.kept_by


def test_the_manual_says_how_long_a_sidecar_gets():
    manual = " ".join((CHECKOUT / "docs/operator.md").read_text().split())
    assert f"so {PATIENCE:g} s after the last trainer of an attempt has ended" in manual


@pytest.mark.parametrize(("stated", "shown"), [({}, "trainer"), ({names.ANNOTATION_CONTAINER: "mine"}, "mine")])
def test_kubectl_shows_the_trainer_beside_others_containers(stated, shown):
    scene = Scene(make_job().with_("spec.podTemplate.metadata", {"annotations": stated})).settle()
    assert scene.pod()["metadata"]["annotations"][names.ANNOTATION_CONTAINER] == shown
