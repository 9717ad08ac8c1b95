"""The operator against a real API server, Job controller and scheduler: what becomes of a TrainingJob."""

from __future__ import annotations

import json

import pytest

from cluster.kube import condition_of
from cluster.paths import CHECKOUT
from cluster.simulated import FOREVER
from integration.jobs import finish, job, state
from integration.operators import Operator
from trainwright_operator.api.manifest import read

pytestmark = pytest.mark.usefixtures("crds")


def events(kube, namespace):
    return [event for event in kube.list("Event", namespace) if event["involvedObject"]["kind"] == "TrainingJob"]


def test_a_job_is_created_runs_and_succeeds(kube, namespace, operator):
    kube.apply(job(run_for="1s").manifest(), namespace)
    done = state(kube, namespace, "Succeeded")
    assert condition_of(done, "Succeeded") == "True"
    assert condition_of(done, "Reconciling") == "False"
    assert [one["outcome"] for one in done["status"]["attempts"]] == ["Succeeded"]
    assert done["status"]["observedGeneration"] == done["metadata"]["generation"]
    (made,) = kube.list("Job", namespace)
    assert made["metadata"]["name"] == "train-0-1"
    assert len(kube.list("Pod", namespace)) == 2
    wanted = {"AttemptStarted", "Running", "Succeeded"}
    kube.wait_list("Event", namespace, lambda found: wanted <= {one["reason"] for one in found}, 20)


def test_a_service_that_is_deleted_under_its_pods_is_back_at_once(kube, namespace, operator):
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    first = kube.get("Service", "tj-train", namespace)
    kube.delete("Service", "tj-train", namespace)
    again = kube.wait_for(
        "Service", "tj-train", namespace, lambda one: one["metadata"]["uid"] != first["metadata"]["uid"], 20
    )
    assert again["spec"]["selector"] == first["spec"]["selector"]
    assert state(kube, namespace, "Running")["status"]["restarts"]["total"] == 0


def test_three_writes_until_the_pods_exist_and_none_when_the_operator_restarts(kube, namespace, operator, tmp_path):
    before = operator.requests()
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    writes = operator.requests() - before
    told = [json.loads(line) for line in operator.log.read_text().splitlines() if '"reason": "AttemptStarted"' in line]
    assert [(line["job"], line["attempt"], line["generation"]) for line in told] == [("train", 1, 1)]
    assert writes["POST"] - len(events(kube, namespace)) == 2, "the Service and the Job"
    assert writes["PATCH"] == 2, "one status when it was started, one when the pods were ready"
    operator.kill()
    again = operator.again()
    kube.apply(job("second", run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running", "second")
    assert again.requests()["PATCH"] == 2, "of the second job alone"
    again.kill()


def test_a_failed_attempt_is_followed_by_another_until_max_restarts(kube, namespace, operator):
    kube.apply(job(exit_code="1").with_("spec.maxRestarts", 1).manifest(), namespace)
    failed = state(kube, namespace, "Failed")
    assert [one["outcome"] for one in failed["status"]["attempts"]] == ["Failed", "Failed"]
    assert failed["status"]["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}
    assert sorted(one["metadata"]["name"] for one in kube.list("Job", namespace)) == ["train-0-1", "train-0-2"]
    assert condition_of(failed, "Stalled") == "True"


def test_a_permanent_exit_code_ends_the_job_with_the_trainers_own_words(kube, namespace, operator):
    message = '{"reason":"BadData","exit_code":65,"error":"spec.dataset.source: /data/*.txt matches no file"}'
    kube.apply(job(exit_code="65", message=message).manifest(), namespace)
    failed = state(kube, namespace, "Failed")
    assert len(failed["status"]["attempts"]) == 1
    words = {one["type"]: one["message"] for one in failed["status"]["conditions"]}["Failed"]
    assert "spec.dataset.source: /data/*.txt matches no file" in words


def test_a_deleted_pod_is_a_disruption_and_the_gang_restarts(kube, namespace, operator):
    kube.apply(job(run_for=FOREVER).with_("spec.maxRestarts", 0).manifest(), namespace)
    state(kube, namespace, "Running")
    pod = kube.list("Pod", namespace)[1]["metadata"]["name"]
    kube.delete("Pod", pod, namespace)
    kube.wait_for("Job", "train-0-2", namespace)
    restarted = state(kube, namespace, "Running")
    assert restarted["status"]["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}
    names = {one["metadata"]["name"].rpartition("-")[0] for one in kube.list("Pod", namespace)}
    assert {"train-0-2-0", "train-0-2-1"} <= names


def test_suspend_stops_the_pods_and_resume_starts_the_next_attempt(kube, namespace, operator):
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    kube.patch("TrainingJob", "train", {"spec": {"suspend": True}}, namespace)
    state(kube, namespace, "Suspended")
    kube.wait_list("Pod", namespace, lambda pods: not pods)
    kube.patch("TrainingJob", "train", {"spec": {"suspend": False}}, namespace)
    resumed = state(kube, namespace, "Running")
    assert resumed["status"]["restarts"]["total"] == 0, "a stop on request is no restart"
    assert kube.list("Pod", namespace)[0]["metadata"]["name"].startswith("train-0-2-")


def test_deleting_the_job_leaves_nothing(kube, namespace, operator):
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    kube.delete("TrainingJob", "train", namespace)
    for kind in ("Job", "Pod", "Service"):
        kube.wait_list(kind, namespace, lambda found: not found, what="to be gone")


def test_a_missing_pool_is_told_and_its_coming_starts_the_job(kube, namespace, operator):
    pool = f"later-{namespace}"
    kube.apply(job(run_for=FOREVER).with_("spec.accelerator.pool", pool).manifest(), namespace)
    waiting = kube.wait_condition("TrainingJob", "train", "Stalled", namespace)
    message = {one["type"]: one["message"] for one in waiting["status"]["conditions"]}["Stalled"]
    assert f"accelerator pool '{pool}' does not exist" in message
    kube.apply(
        {
            "apiVersion": "trainwright.dev/v1alpha1",
            "kind": "AcceleratorPool",
            "metadata": {"name": pool},
            "spec": {"vendor": "cpu"},
        }
    )
    state(kube, namespace, "Running")
    kube.delete("AcceleratorPool", pool, None)


def test_a_child_of_another_owner_is_left_alone_and_told(kube, namespace, operator):
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "tj-train", "namespace": namespace},
            "spec": {"clusterIP": "None"},
        }
    )
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    held = kube.wait_condition("TrainingJob", "train", "Stalled", namespace)
    message = {one["type"]: one["message"] for one in held["status"]["conditions"]}["Stalled"]
    assert "Service tj-train exists and belongs to nobody" in message
    assert kube.list("Job", namespace) == []


def test_a_quota_that_refuses_the_pods_is_told_in_its_own_words(kube, namespace, operator):
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none", "namespace": namespace},
            "spec": {"hard": {"pods": "0"}},
        }
    )
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    queued = kube.wait_condition("TrainingJob", "train", "Queued", namespace)
    message = {one["type"]: one["message"] for one in queued["status"]["conditions"]}["Queued"]
    assert "exceeded quota: none" in message


def test_pods_that_fit_nowhere_are_told_in_the_schedulers_words(kube, namespace, operator):
    huge = {"requests": {"cpu": "9999"}}
    kube.apply(job(run_for=FOREVER).with_("spec.podTemplate.resources", huge).manifest(), namespace)
    queued = kube.wait_condition("TrainingJob", "train", "Queued", namespace)
    message = {one["type"]: one["message"] for one in queued["status"]["conditions"]}["Queued"]
    assert "Insufficient cpu" in message


def test_an_api_server_that_restarts_loses_nothing(kube, namespace, tmp_path, cluster):
    patient = {"LEASE_DURATION": "70", "LEASE_RENEW_DEADLINE": "60"}  # however slowly the API server is back
    operator = Operator(kube, namespace, tmp_path, patient).start().wait_leading()
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    cluster.restart_api_server()
    finish(kube, namespace)
    state(kube, namespace, "Succeeded")
    assert operator.stop() == 0, "it was the same process all the time"


def test_applying_the_same_manifest_ten_times_from_another_manager_changes_nothing(kube, namespace, operator):
    manifest = job(run_for=FOREVER).manifest()
    kube.apply(manifest, namespace)
    running = state(kube, namespace, "Running")
    before = operator.requests()
    for _ in range(10):
        kube.apply(manifest, namespace, fieldManager="argocd-controller")
    after = kube.get("TrainingJob", "train", namespace)
    assert after["metadata"]["generation"] == running["metadata"]["generation"]
    assert after["spec"] == running["spec"]
    assert after["status"] == running["status"]
    assert operator.requests()["PATCH"] == before["PATCH"]


def test_leadership_passes_to_the_standby_which_writes_nothing_needless(kube, namespace, operator, tmp_path):
    standby = Operator(kube, namespace, tmp_path, {"POD_NAME": "standby"}).start()
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    assert (standby.metrics() or {})["trainwright_leading"] == 0
    operator.kill()
    standby.wait_leading()
    kube.apply(job("second", run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running", "second")
    assert standby.requests()["PATCH"] == 2
    assert standby.stop() == 0


def test_the_examples_of_the_project_are_accepted(kube, namespace):
    examples = sorted((CHECKOUT / "examples").glob("*.yaml"))
    accepted = [
        kube.apply(document.content, namespace, dryRun="All")[0]["kind"]
        for path in examples
        for document in read(path.read_text(), str(path))
        if not document.content["apiVersion"].startswith("kueue.x-k8s.io/")  # test_kueue applies those
    ]
    assert accepted.count("TrainingJob") == len(examples)
    assert set(accepted) == {"TrainingJob", "AcceleratorPool", "PersistentVolumeClaim"}
