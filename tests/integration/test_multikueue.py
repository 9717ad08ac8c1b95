"""MultiKueue with two control planes, the real Kueue on both, and an operator in each: the manager's and a worker's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.kube import Kube
from cluster.kueue import Kueue, obstacle
from cluster.paths import CHECKOUT
from integration.conftest import started
from integration.jobs import state
from integration.operators import Operator
from integration.queued import attempts, condition, kueue_object, queued, reserved, says, team, wait_queued, workload_of

Object = dict[str, Any]
MULTIKUEUE = "kueue.x-k8s.io/multikueue"
CONTROLLER = {
    "gcInterval": "2s",
    "origin": "manager",
    "workerLostTimeout": "2s",
    "externalFrameworks": [{"name": "TrainingJob.v1alpha1.trainwright.dev"}],
}


@dataclass(frozen=True)
class Side:
    """One of the two clusters."""

    cluster: ControlPlane
    kueue: Kueue
    kube: Kube


def opened(name: str, nodes: int, configuration: Object) -> Iterator[Side]:
    for cluster in started(ControlPlane(f"{name}-{os.getpid()}", nodes=nodes)):
        for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
            for crd in cluster.kube.apply(path):
                cluster.kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
        kueue = Kueue(cluster, configuration)
        kueue.up()
        try:
            yield Side(cluster, kueue, cluster.kube)
        finally:
            kueue.down()


@pytest.fixture(scope="module")
def worker() -> Iterator[Side]:
    if not os.environ.get("TRAINWRIGHT_MULTIKUEUE"):
        pytest.skip("make multikueue runs these stories: two control planes take a minute")
    if why := obstacle():
        pytest.skip(why)
    yield from opened("worker", 3, {})


@pytest.fixture(scope="module")
def manager(worker: Side) -> Iterator[Side]:
    for side in opened("manager", 0, {"multiKueue": CONTROLLER}):
        side.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kueue-system"}})
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "worker", "namespace": "kueue-system"}}
        side.kube.apply(secret | {"stringData": {"kubeconfig": worker.cluster.kubeconfig.read_text()}})
        source = {"kubeConfig": {"location": "worker", "locationType": "Secret"}}
        side.kube.apply(kueue_object("MultiKueueCluster", "worker", {"clusterSource": source}))
        side.kube.apply(kueue_object("MultiKueueConfig", "workers", {"clusters": ["worker"]}))
        reference = {"apiGroup": "kueue.x-k8s.io", "kind": "MultiKueueConfig", "name": "workers"}
        check = {"controllerName": MULTIKUEUE, "parameters": reference}
        side.kube.apply(kueue_object("AdmissionCheck", "multikueue", check))
        side.kube.wait_condition("AdmissionCheck", "multikueue", "Active", None)
        yield side


@pytest.fixture(scope="module")
def namespace(manager: Side, worker: Side) -> str:
    """The same in both clusters: Kueue copies a job to the namespace of its own name."""
    name = "research"
    for side in (manager, worker):
        side.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    checks = {"admissionChecksStrategy": {"admissionChecks": [{"name": "multikueue"}]}}
    team(manager.kube, name, cpu="2", **checks)
    team(worker.kube, name, cpu="2", preemption={"withinClusterQueue": "LowerPriority"})
    return name


@pytest.fixture(scope="module", autouse=True)
def operators(manager: Side, worker: Side, namespace: str, tmp_path_factory) -> Iterator[list[Operator]]:
    folder: Path = tmp_path_factory.mktemp("operators")
    both = [Operator(side.kube, namespace, folder).start().wait_leading() for side in (manager, worker)]
    yield both
    for one in both:
        one.kill()


def managed(name: str, **annotations: str) -> Object:
    return queued(name, nodes=2, **annotations).with_("spec.managedBy", MULTIKUEUE).manifest()


def owners(obj: Object) -> list[str]:
    return [one["uid"] for one in obj["metadata"].get("ownerReferences") or ()]


def gone(kube: Kube, namespace: str, kind: str, name: str) -> None:
    kube.wait_list(kind, namespace, lambda found: all(name not in one["metadata"]["name"] for one in found), 60)


def test_a_job_trains_in_the_worker_and_ends_in_both(manager, worker, namespace):
    manager.kube.apply(managed("train", run_for="2s"), namespace)
    state(manager.kube, namespace, "Running")
    there = worker.kube.get("TrainingJob", "train", namespace)

    assert "managedBy" not in there["spec"]
    uid = there["metadata"]["uid"]
    workload_of(worker.kube, namespace, "train", lambda obj: owners(obj) == [uid], "to be adopted")
    assert manager.kube.list("Pod", namespace) == []
    assert manager.kube.list("Job", namespace) == [], "the manager makes the Workload and nothing else"

    done = state(manager.kube, namespace, "Succeeded")
    assert attempts(done) == [(1, "Succeeded", "TrainingCompleted")]
    gone(worker.kube, namespace, "TrainingJob", "train")
    ended = manager.kube.wait_for(
        "Workload",
        workload_of(manager.kube, namespace, "train")["metadata"]["name"],
        namespace,
        lambda obj: not obj["metadata"].get("finalizers"),
        30,
        "to be let go",
    )
    assert condition(ended, "Finished")["reason"] == "Succeeded"


def test_a_job_that_waits_for_the_manager_says_so(manager, worker, namespace):
    manager.kube.apply(managed("first", run_for="forever"), namespace)
    state(manager.kube, namespace, "Running", "first")
    workload_of(manager.kube, namespace, "first", says("PodsReady", "True"))
    manager.kube.apply(managed("second", run_for="1s"), namespace)
    wait_queued(manager.kube, namespace, "second", "insufficient unused quota")
    assert worker.kube.list("TrainingJob", namespace, "") != []

    manager.kube.delete("TrainingJob", "first", namespace)
    gone(worker.kube, namespace, "TrainingJob", "first")
    gone(manager.kube, namespace, "Workload", "first")
    state(manager.kube, namespace, "Succeeded", "second")


def test_a_suspended_job_leaves_the_worker_and_returns(manager, worker, namespace):
    manager.kube.apply(managed("paused", run_for="forever"), namespace)
    state(manager.kube, namespace, "Running", "paused")
    manager.kube.patch("TrainingJob", "paused", {"spec": {"suspend": True}}, namespace)
    state(manager.kube, namespace, "Suspended", "paused")
    gone(worker.kube, namespace, "TrainingJob", "paused")
    manager.kube.patch("TrainingJob", "paused", {"spec": {"suspend": False}}, namespace)
    again = state(manager.kube, namespace, "Running", "paused")
    assert attempts(again) == [(2, None, None)], "the fence of the output lets only later attempts write"
    manager.kube.delete("TrainingJob", "paused", namespace)
    gone(worker.kube, namespace, "TrainingJob", "paused")


def test_a_job_preempted_in_the_worker_waits_and_is_sent_again(manager, worker, namespace):
    manager.kube.apply(managed("low", run_for="forever"), namespace)
    state(manager.kube, namespace, "Running", "low")
    uid = manager.kube.get("TrainingJob", "low", namespace)["metadata"]["uid"]
    urgent = {"metadata": {"name": "urgent"}, "apiVersion": "kueue.x-k8s.io/v1beta2", "value": 100}
    worker.kube.apply({"kind": "WorkloadPriorityClass", **urgent})
    local = queued("local", nodes=2, run_for="2s")
    labels = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "urgent"}
    worker.kube.apply(local.with_("metadata.labels", labels).manifest(), namespace)

    state(worker.kube, namespace, "Succeeded", "local")
    manager.kube.wait_for(
        "TrainingJob",
        "low",
        namespace,
        lambda obj: obj["status"]["state"] == "Running" and obj["status"]["attempts"][-1]["attempt"] > 1,
        90,
        "to run again",
    )
    (job,) = worker.kube.wait_list(
        "Job", namespace, lambda found: len(found) == 1, labels="trainwright.dev/job=low", what="to be one"
    )
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert uid in annotations["trainwright.dev/resolved-job"], "its checkpoints are still its own"


def test_a_worker_that_is_lost_returns_the_quota_and_gets_the_job_again(manager, worker, namespace, operators):
    manager.kube.delete("TrainingJob", "low", namespace)
    gone(manager.kube, namespace, "Workload", "low")
    manager.kube.apply(managed("far", run_for="forever"), namespace)
    state(manager.kube, namespace, "Running", "far")
    worker.cluster.stop_api_server()
    waits = wait_queued(manager.kube, namespace, "far", "queue team: ")
    assert attempts(waits) == [(1, "Stopped", "AdmissionCheck")]
    assert "lost" in waits["status"]["attempts"][0]["message"]

    worker.cluster.start_api_server()
    operators[1].kill()  # it has lost its lease, and ends; a kubelet would start it again
    operators[1].again()
    state(manager.kube, namespace, "Running", "far", seconds=300)
    workload_of(manager.kube, namespace, "far", reserved, "to have quota")


def test_the_manager_of_a_job_never_changes(manager, namespace):
    made = queued("fixed", run_for="1s").with_("spec.suspend", True).manifest()
    manager.kube.apply(made, namespace)
    with pytest.raises(Exception, match="managedBy"):
        manager.kube.patch("TrainingJob", "fixed", {"spec": {"managedBy": MULTIKUEUE}}, namespace)
