"""Jobs in a queue, with Kueue's own controller and webhooks: they wait, start, give way, return and are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.fixtures import namespace  # noqa: F401
from cluster.kube import Kube
from cluster.kueue import Kueue, obstacle
from cluster.paths import CHECKOUT
from integration.conftest import started
from integration.jobs import job, state
from integration.operators import Operator
from integration.proxy import AFTER, BEFORE, Which, proxied
from integration.queued import (
    QUEUE,
    attempts,
    condition,
    priorities,
    queued,
    racks,
    racks_of,
    reserved,
    says,
    team,
    wait_queued,
    without_workload,
    workload_of,
)
from trainwright_operator.api.manifest import read

Object = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """Skip where Kueue cannot run, and say why."""
    if why := obstacle():
        pytest.skip(why)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane of its own: where Kueue is installed, operators watch its objects as well."""
    yield from started(ControlPlane(f"kueue-{os.getpid()}"))


@pytest.fixture(scope="module")
def kube(cluster: ControlPlane) -> Kube:
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        for crd in cluster.kube.apply(path):
            cluster.kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
    return cluster.kube


@pytest.fixture(scope="module")
def kueue(cluster: ControlPlane, kube: Kube) -> Iterator[Kueue]:
    running = Kueue(cluster, {}, visibility=True)
    running.up()
    yield running
    running.down()


@pytest.fixture
def operator(kueue: Kueue, kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Operator]:  # noqa: F811
    running = Operator(kube, namespace, tmp_path).start().wait_leading()
    yield running
    running.kill()


def test_a_second_job_waits_for_the_quota_of_the_first(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="2")
    kube.apply(queued("first", nodes=2, run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running", "first")
    kube.apply(queued("second", nodes=2, run_for="1s").manifest(), namespace)

    waiting = kube.wait_for(
        "TrainingJob",
        "second",
        namespace,
        lambda obj: "insufficient unused quota" in condition(obj, "Queued").get("message", ""),
        60,
        "to say what it waits for",
    )

    assert waiting["status"]["display"]["state"].startswith("Queued (")
    assert "queue team: couldn't assign flavors" in waiting["status"]["display"]["why"]
    assert kube.list("Pod", namespace, "trainwright.dev/job=second") == []

    workload_of(kube, namespace, "first", says("PodsReady", "Started"))
    kube.patch("TrainingJob", "first", {"spec": {"suspend": True}}, namespace)
    state(kube, namespace, "Succeeded", "second")

    workload_of(kube, namespace, "second", says("Finished", "Succeeded"))
    without_workload(kube, namespace, "first")


def restarts(obj: Object) -> Object:
    return obj["status"]["restarts"]


def none_at_work(pods: list[Object]) -> bool:
    return all(pod["status"]["phase"] not in ("Running", "Pending") for pod in pods)


def test_a_higher_priority_stops_a_job_that_returns_later(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="2", preemption={"withinClusterQueue": "LowerPriority"})
    priority = priorities(kube, namespace, low=1, high=100)
    kube.apply(
        queued("low", nodes=2, run_for="forever").with_("metadata.labels", priority["low"]).manifest(), namespace
    )
    state(kube, namespace, "Running", "low")

    kube.apply(
        queued("high", nodes=2, run_for="forever").with_("metadata.labels", priority["high"]).manifest(), namespace
    )
    state(kube, namespace, "Running", "high")
    waits = wait_queued(kube, namespace, "low", "queue team: ")

    kube.wait_list("Pod", namespace, none_at_work, labels="trainwright.dev/job=low")
    assert attempts(waits) == [(1, "Stopped", "Preempted")]
    assert restarts(waits)["total"] == 0, "a preempted job has not failed"

    kube.delete("TrainingJob", "high", namespace)
    again = state(kube, namespace, "Running", "low")
    assert attempts(again) == [(1, "Stopped", "Preempted"), (2, None, None)]
    workload_of(kube, namespace, "low", says("PodsReady", "True"))


def test_a_job_that_waits_and_the_command_line_say_its_place(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="0")
    made = priorities(kube, namespace, low=1, high=100)
    for name, labels in made.items():
        kube.apply(queued(name, run_for="1s").with_("metadata.labels", labels).manifest(), namespace)
    last = wait_queued(kube, namespace, "low", "place 2 in the ClusterQueue; ")
    wait_queued(kube, namespace, "high", "place 1 in the ClusterQueue; couldn't assign flavors")
    assert last["status"]["display"]["why"].startswith("queue team: place 2 in the ClusterQueue")
    kube.apply(queued("same", run_for="1s").with_("metadata.labels", made["low"]).manifest(), namespace)
    wait_queued(kube, namespace, "same", "place 3 in the ClusterQueue; ")

    listed = command("queue", "team", "--namespace", namespace, "--kubeconfig", str(kube.kubeconfig))
    rows = [line.split() for line in listed.splitlines()]
    assert [row[:3] for row in rows if row[:1] and row[0].isdigit()] == [
        ["1", "1", "high"],
        ["2", "2", "low"],
        ["3", "3", "same"],
    ]


def command(*words: str) -> str:
    """What the command line prints."""
    folders = os.pathsep.join(str(CHECKOUT / one) for one in ("trainer_image", "operator"))
    environment = {**os.environ, "PYTHONPATH": folders, "COLUMNS": "160"}
    program = [sys.executable, "-m", "trainwright_operator.cli", *words]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_restart_keeps_the_quota(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="1")
    made = queued("failing", run_for="1s", exit_code="1").with_("spec.maxRestarts", 1)
    kube.apply(made.manifest(), namespace)
    kube.wait_for(
        "TrainingJob", "failing", namespace, lambda obj: len(obj.get("status", {}).get("attempts", ())) >= 1, 60
    )
    first = workload_of(kube, namespace, "failing", says("Admitted", "True"))
    kube.apply(queued("other", run_for="1s").manifest(), namespace)

    failed = state(kube, namespace, "Failed", "failing")
    state(kube, namespace, "Succeeded", "other")
    last = workload_of(kube, namespace, "failing", says("Finished", "Failed"))

    assert restarts(failed)["counted"] == 1
    assert last["metadata"]["uid"] == first["metadata"]["uid"]
    assert condition(last, "Admitted")["lastTransitionTime"] == condition(first, "Admitted")["lastTransitionTime"]


def test_a_suspended_job_returns_its_quota_and_waits_again(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="1")
    kube.apply(queued("first", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running", "first")
    kube.patch("TrainingJob", "first", {"spec": {"suspend": True}}, namespace)
    state(kube, namespace, "Suspended", "first")

    kube.apply(queued("second", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running", "second")
    kube.patch("TrainingJob", "first", {"spec": {"suspend": False}}, namespace)
    wait_queued(kube, namespace, "first", "insufficient unused quota")

    kube.delete("TrainingJob", "second", namespace)
    state(kube, namespace, "Running", "first")


@pytest.mark.parametrize("when", ["queued", "running", "finished"])
def test_a_deleted_job_leaves_no_workload(kube, operator, namespace, when):  # noqa: F811
    team(kube, namespace, cpu="0" if when == "queued" else "1")
    kube.apply(queued("train", run_for="1s" if when == "finished" else "forever").manifest(), namespace)
    if when == "queued":
        wait_queued(kube, namespace, "train", "quota")
    else:
        state(kube, namespace, {"running": "Running", "finished": "Succeeded"}[when])
    kube.delete("TrainingJob", "train", namespace)
    without_workload(kube, namespace)


def test_an_admin_takes_a_job_out_and_lets_it_in_again(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="1")
    kube.apply(queued("train", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running")
    name = workload_of(kube, namespace, "train")["metadata"]["name"]

    kube.patch("Workload", name, {"spec": {"active": False}}, namespace)
    out = wait_queued(kube, namespace, "train", "deactivated")
    kube.wait_for("Workload", name, namespace, lambda obj: not reserved(obj), 30, "to return its quota")
    assert condition(out, "Stalled")["status"] == "True"
    assert f"kubectl -n {namespace} patch workload {name}" in condition(out, "Queued")["message"]

    kube.patch("Workload", name, {"spec": {"active": True}}, namespace)
    assert attempts(state(kube, namespace, "Running"))[0][1:] == ("Stopped", "Deactivated")


def test_a_queue_that_is_drained_and_opened(kube, operator, namespace):  # noqa: F811
    queue = team(kube, namespace, cpu="1")
    kube.apply(queued("train", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running")
    kube.patch("ClusterQueue", queue, {"spec": {"stopPolicy": "HoldAndDrain"}}, None)
    wait_queued(kube, namespace, "train", "queue team: ")
    kube.wait_list("Pod", namespace, none_at_work)
    kube.patch("ClusterQueue", queue, {"spec": {"stopPolicy": "None"}}, None)
    assert attempts(state(kube, namespace, "Running"))[0][1:] == ("Stopped", "ClusterQueueStopped")


def test_a_queue_that_does_not_exist_yet(kube, operator, namespace):  # noqa: F811
    kube.apply(queued("train", run_for="1s").manifest(), namespace)
    waits = wait_queued(kube, namespace, "train", "doesn't exist")
    assert f"create that LocalQueue in namespace {namespace}" in condition(waits, "Queued")["message"]
    assert condition(waits, "Stalled")["status"] == "True"
    team(kube, namespace, cpu="1")
    state(kube, namespace, "Succeeded")


def test_the_label_is_changed_and_removed_while_a_job_waits(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="0")
    team(kube, namespace, cpu="1", name="other")
    for name in ("moved", "freed"):
        kube.apply(queued(name, run_for="1s").manifest(), namespace)
        wait_queued(kube, namespace, name, "queue team: ")
    uid = workload_of(kube, namespace, "moved")["metadata"]["uid"]

    kube.patch("TrainingJob", "moved", {"metadata": {"labels": {QUEUE: "other"}}}, namespace)
    state(kube, namespace, "Succeeded", "moved")
    assert workload_of(kube, namespace, "moved")["metadata"]["uid"] == uid

    kube.patch("TrainingJob", "freed", {"metadata": {"labels": {QUEUE: None}}}, namespace)
    state(kube, namespace, "Succeeded", "freed")
    without_workload(kube, namespace, "freed")


def test_the_flavor_chooses_the_nodes(kube, operator, namespace):  # noqa: F811
    taint = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
    nodes = {"nodeLabels": {"kubernetes.io/os": "linux"}, "tolerations": [taint]}
    queue = team(kube, namespace, cpu="1", nodes=nodes)
    kube.apply(queued("train", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running")
    pod = kube.list("Pod", namespace, "trainwright.dev/job=train")[0]
    assert pod["spec"]["nodeSelector"]["kubernetes.io/os"] == "linux"
    assert taint in pod["spec"]["tolerations"]
    found = workload_of(kube, namespace, "train")
    assert pod["metadata"]["annotations"]["kueue.x-k8s.io/workload"] == found["metadata"]["name"]
    assert found["status"]["admission"]["clusterQueue"] == queue


def test_a_workload_that_is_deleted_stops_the_job_which_waits_again(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="1")
    kube.apply(queued("train", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running")
    first = workload_of(kube, namespace, "train")
    kube.delete("Workload", first["metadata"]["name"], namespace)
    again = kube.wait_for("TrainingJob", "train", namespace, lambda obj: len(obj["status"]["attempts"]) == 2, 60)
    assert attempts(again)[0] == (1, "Stopped", "WorkloadDeleted")
    workload_of(kube, namespace, "train", lambda obj: obj["metadata"]["uid"] != first["metadata"]["uid"])


def test_quota_that_was_borrowed_is_reclaimed(kube, operator, namespace):  # noqa: F811
    cohort = {"cohortName": namespace, "preemption": {"reclaimWithinCohort": "Any"}}
    team(kube, namespace, cpu="1", name="lender", **cohort)
    team(kube, namespace, cpu="1", name="borrower", **cohort)
    kube.apply(queued("big", "borrower", nodes=2, run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running", "big")
    kube.apply(queued("mine", "lender", run_for="forever").manifest(), namespace)
    state(kube, namespace, "Running", "mine")
    waits = wait_queued(kube, namespace, "big", "queue borrower: ")
    assert attempts(waits) == [(1, "Stopped", "Preempted")]


def test_the_example_of_two_teams_is_accepted(kueue, kube):
    path = CHECKOUT / "examples" / "queues.yaml"
    kinds = [kube.apply(one.content, dryRun="All")[0]["kind"] for one in read(path.read_text(), path.name)]
    assert kinds == ["ResourceFlavor", *["ClusterQueue"] * 2, *["LocalQueue"] * 2, "TrainingJob"]


def test_a_job_without_a_queue_is_left_alone(kube, operator, namespace):  # noqa: F811
    kube.apply(job(run_for="1s").manifest(), namespace)
    state(kube, namespace, "Succeeded")
    assert kube.list("Workload", namespace) == []


def test_an_elastic_job_starts_with_the_pods_that_there_is_quota_for(kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="3")
    made = queued("train", nodes=4, run_for="forever").with_("spec.accelerator.minNodes", 2)
    kube.apply(made.training(gradientAccumulationSteps=3).manifest(), namespace)
    found = state(kube, namespace, "Running")
    assert [(one["attempt"], one["nodes"]) for one in found["status"]["attempts"]] == [(1, 3)]
    assert len(kube.list("Pod", namespace, "trainwright.dev/job=train")) == 3
    assert workload_of(kube, namespace, "train")["spec"]["podSets"][0]["minCount"] == 2


# Topology, time limits, and other configurations of Kueue


def test_pods_are_placed_in_one_rack_by_kueue(cluster, kube, operator, namespace):  # noqa: F811
    rack = racks(cluster, kube, namespace, size=2)
    made = queued("near", "racks", nodes=2, run_for="forever").with_("spec.accelerator.topology", {"required": rack})
    kube.apply(made.manifest(), namespace)
    state(kube, namespace, "Running", "near")

    pods = kube.list("Pod", namespace, "trainwright.dev/job=near")
    nodes = {kube.get("Node", pod["spec"]["nodeName"], None)["metadata"]["labels"][rack] for pod in pods}
    assert len(pods) == 2
    assert len(nodes) == 1, "both pods are in one rack"

    wide = queued("wide", "racks", nodes=3, run_for="1s").with_("spec.accelerator.topology", {"required": rack})
    kube.apply(wide.manifest(), namespace)
    wait_queued(kube, namespace, "wide", "topology")


def lose(kube: Kube, pod: Object) -> None:
    """Take a pod's node away, and then the pod, as the garbage collector of pods does a minute later."""
    kube.delete("Node", pod["spec"]["nodeName"], None)
    kube.delete("Pod", pod["metadata"]["name"], pod["metadata"]["namespace"], gracePeriodSeconds=0)


@pytest.mark.parametrize("size", [3, 2], ids=["a spare node", "none in its rack"])
def test_a_job_whose_node_is_lost_returns_to_one_rack(cluster, kube, operator, namespace, size):  # noqa: F811
    """Kueue replaces the node by a spare one, or, when it finds that too late or has none, evicts the job."""
    rack = racks(cluster, kube, namespace, size=size)
    made = queued("train", "racks", nodes=2, run_for="forever").with_("spec.accelerator.topology", {"required": rack})
    kube.apply(made.manifest(), namespace)
    state(kube, namespace, "Running")
    admitted = workload_of(kube, namespace, "train", says("PodsReady", "Started"))
    pod = kube.list("Pod", namespace, "trainwright.dev/job=train")[0]
    lost = pod["spec"]["nodeName"]
    before = kube.get("Node", lost, None)["metadata"]["labels"][rack]

    kube.delete("Node", lost, None)  # and then its pod, as the garbage collector of pods does a minute later
    kube.delete("Pod", pod["metadata"]["name"], namespace, gracePeriodSeconds=0)
    used = racks_of(kube, namespace, rack, lost)
    assert len(used) == 1
    assert size > 2 or before not in used
    after = workload_of(kube, namespace, "train", says("PodsReady", "True"))
    assert after["metadata"]["uid"] == admitted["metadata"]["uid"]


def is_workload(verb: str, suffix: str = "", words: str = "") -> Which:
    """A write to a Workload: its creation, or a patch of which the body holds ``words``."""
    return lambda method, path, body: (
        method == verb and "/workloads" in path and path.endswith(suffix) and words in json.dumps(body)
    )


def test_an_operator_killed_at_each_write_loses_no_quota_and_no_workload(kueue, kube, namespace, tmp_path):  # noqa: F811
    team(kube, namespace, cpu="2")
    with proxied(kube, tmp_path) as (proxy, through):
        operator = Operator(through, namespace, tmp_path).start().wait_leading()

        def strike(which: Which, cause=lambda: None) -> None:
            """Kill the operator before and then after the API server has done the write that ``cause`` leads to."""
            for when in (BEFORE, AFTER):
                proxy.kill_at(which, when, operator.kill)
                if when == BEFORE:
                    cause()
                else:
                    operator.again(leading=False)  # the write that it dies at may come before it is seen to lead
                assert proxy.struck.wait(60), "the write was never made"
            operator.again()

        made = queued("train", nodes=2, run_for="forever")
        strike(is_workload("POST"), lambda: kube.apply(made.manifest(), namespace))
        strike(is_workload("PATCH", "/status", '"PodsReady"'))
        running = state(kube, namespace, "Running")
        assert [one["attempt"] for one in running["status"]["attempts"]] == [1]

        name = workload_of(kube, namespace, "train")["metadata"]["name"]
        leave = {"spec": {"active": False}}
        strike(
            is_workload("PATCH", "/status", '"admission": null'), lambda: kube.patch("Workload", name, leave, namespace)
        )
        kube.wait_for("Workload", name, namespace, lambda obj: not reserved(obj), 60, "to return its quota")
        kube.patch("Workload", name, {"spec": {"active": True}}, namespace)
        returned = [(1, "Stopped", "Deactivated"), (2, None, None)]
        kube.wait_for(
            "TrainingJob",
            "train",
            namespace,
            lambda obj: obj["status"]["state"] == "Running" and attempts(obj) == returned,
            what="to have returned",
        )

        end = {"spec": {"activeDeadlineSeconds": 1}}
        strike(
            is_workload("PATCH", "/status", '"Finished"'), lambda: kube.patch("TrainingJob", "train", end, namespace)
        )
        done = kube.wait_for("Workload", name, namespace, lambda obj: not obj["metadata"].get("finalizers"), 60)
        assert condition(done, "Finished")["reason"] == "Failed"
        operator.kill()
    assert [one["metadata"]["name"] for one in kube.list("Workload", namespace)] == [name]


def test_kueue_that_manages_every_job_and_waits_for_pods(kueue, cluster, kube, operator, namespace):  # noqa: F811
    team(kube, namespace, cpu="4")
    other = Kueue(
        cluster,
        {
            "manageJobsWithoutQueueName": True,
            "integrations": {
                "frameworks": ["batch/job"],
                "externalFrameworks": ["TrainingJob.v1alpha1.trainwright.dev"],
            },
            "waitForPodsReady": {"timeout": "5s", "requeuingStrategy": {"backoffBaseSeconds": 1}},
        },
    )
    other.reconfigure()
    kube.apply(queued("ready", nodes=2, run_for="2s").manifest(), namespace)
    kube.apply(job("without", 1, run_for="1s").manifest(), namespace)
    nowhere = queued("late", nodes=1, run_for="1s").with_("spec.podTemplate.nodeSelector", {"zone": "moon"})
    kube.apply(nowhere.manifest(), namespace)

    state(kube, namespace, "Succeeded", "ready")
    state(kube, namespace, "Succeeded", "without")
    evicted = kube.wait_for(
        "TrainingJob",
        "late",
        namespace,
        lambda obj: len(obj.get("status", {}).get("attempts", ())) > 1,
        60,
        "to return",
    )

    assert attempts(evicted)[0] == (1, "Stopped", "PodsReadyTimeout")
