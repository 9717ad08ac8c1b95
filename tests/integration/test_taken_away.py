"""What others do to the children of a job, seen and unseen: on a real API server with its Job controller."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cluster.kube import ApiError, Kube, Object, condition_of
from cluster.simulated import FOREVER
from integration.jobs import job, state
from integration.operators import Operator
from pool_cases import RESOURCES

pytestmark = pytest.mark.usefixtures("crds")

INDEX_LABELS = ("batch.kubernetes.io/controller-uid", "controller-uid", "batch.kubernetes.io/job-name", "job-name")
BAD_DATA = '{"reason":"BadData","exit_code":65,"error":"forged"}'


def shown(kube: Kube, namespace: str, wanted: str, seconds: float = 60) -> Object:
    def is_so(obj: Object) -> bool:
        return bool((obj.get("status", {}).get("display") or {}).get("state") == wanted)

    return kube.wait_for("TrainingJob", "train", namespace, is_so, seconds, f"to be shown as {wanted}")


def test_pods_that_are_evicted_while_nobody_leads_are_not_counted(
    kube: Kube, namespace: str, operator: Operator
) -> None:
    kube.apply(job(run_for=FOREVER).with_("spec.maxRestarts", 0).manifest(), namespace)
    state(kube, namespace, "Running")
    operator.kill()
    for pod in kube.list("Pod", namespace):
        kube.evict(pod["metadata"]["name"], namespace)
    kube.wait_list("Pod", namespace, lambda pods: not pods, what="to be gone")
    kube.wait_condition("Job", "train-0-1", "Failed", namespace)
    again = operator.again()
    kube.wait_for("Job", "train-0-2", namespace)
    restarted = state(kube, namespace, "Running")["status"]
    again.kill()
    assert restarted["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}
    assert restarted["attempts"][0]["reason"] == "PodsGone"


def stray(pod: Object, name: str, forget: tuple[str, ...]) -> Object:
    """As `kubectl debug --copy-to --keep-labels` makes one, with the labels of the Job controller or without."""
    meta, spec = pod["metadata"], copy.deepcopy(pod["spec"])
    labels = {key: value for key, value in meta["labels"].items() if key not in forget}
    kept = {"name": name, "labels": labels, "annotations": meta["annotations"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": kept, "spec": spec}


def test_a_stray_pod_with_the_labels_of_a_job_does_not_decide_its_fate(
    kube: Kube, namespace: str, operator: Operator
) -> None:
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    kube.create(stray(kube.list("Pod", namespace)[0], "forged", INDEX_LABELS), namespace)
    ended = {"exitCode": 65, "message": BAD_DATA, "startedAt": None, "finishedAt": "2026-01-01T00:00:00Z"}
    container: Object = {"name": "trainer", "state": {"terminated": ended}, "image": "x", "imageID": "", "ready": False}
    container |= {"restartCount": 0}
    kube.patch("Pod", "forged", {"status": {"phase": "Failed", "containerStatuses": [container]}}, namespace, "status")
    kube.patch("TrainingJob", "train", {"spec": {"suspend": True}}, namespace)
    (attempt,) = state(kube, namespace, "Suspended")["status"]["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("Stopped", "Suspended")


def test_a_job_that_somebody_scales_down_says_so_and_goes_on_afterwards(
    kube: Kube, namespace: str, operator: Operator
) -> None:
    kube.apply(job(run_for=FOREVER).manifest(), namespace)
    state(kube, namespace, "Running")
    kube.patch("Job", "train-0-1", {"spec": {"parallelism": 0}}, namespace)
    held = shown(kube, namespace, "Queued (JobScaledDown)")
    assert "was set to 0 of its 2 pods" in held["status"]["display"]["why"]
    kube.wait_list("Pod", namespace, lambda pods: not pods, what="to be gone")
    kube.patch("Job", "train-0-1", {"spec": {"parallelism": 2}}, namespace)
    assert state(kube, namespace, "Running")["status"]["restarts"]["total"] == 0


def test_pods_whose_job_was_deleted_without_them_train_to_their_end(
    kube: Kube, namespace: str, operator: Operator
) -> None:
    kube.apply(job(run_for="15s").manifest(), namespace)
    state(kube, namespace, "Running")
    kube.delete("Job", "train-0-1", namespace, propagationPolicy="Orphan")
    kube.wait_gone("Job", "train-0-1", namespace)
    done = state(kube, namespace, "Succeeded")["status"]
    assert [one["attempt"] for one in done["attempts"]] == [1]


def test_a_deleted_job_that_a_finalizer_holds_is_stopped_and_names_it(
    kube: Kube, namespace: str, operator: Operator
) -> None:
    kube.apply(job(run_for=FOREVER).with_("metadata.finalizers", ["example.com/hold"]).manifest(), namespace)
    state(kube, namespace, "Running")
    kube.delete("TrainingJob", "train", namespace)
    held = shown(kube, namespace, "Stopping (Deleting)")
    assert "example.com/hold" in held["status"]["display"]["why"]
    assert condition_of(held, "Reconciling") == "True"
    kube.wait_list("Pod", namespace, lambda pods: not pods, what="to be gone")
    kube.patch("TrainingJob", "train", {"metadata": {"finalizers": []}}, namespace)
    kube.wait_gone("TrainingJob", "train", namespace)


def test_resources_are_refused_by_the_api_server_as_by_us(kube: Kube, namespace: str) -> None:
    told = {name: _taken(kube, namespace, resources) for name, (resources, _) in RESOURCES.items()}
    assert told == {name: wrong is None for name, (_, wrong) in RESOURCES.items()}


def _taken(kube: Kube, namespace: str, resources: dict[str, Any]) -> bool:
    restricted = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "c", "image": "x", "resources": resources, "securityContext": restricted}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks"}, "spec": {"containers": [container]}}
    try:
        kube.create(pod, namespace, dryRun="All")
    except ApiError as error:
        if error.code != 422:
            raise
        return False
    return True
