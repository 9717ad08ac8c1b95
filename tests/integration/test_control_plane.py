"""The control plane itself: real controllers and a real scheduler, with nodes that are simulated."""

from __future__ import annotations

import os

import pytest

from cluster.control_plane import ControlPlane
from cluster.jobs import indexed_job
from cluster.kube import ApiError, Kube, WaitError, condition_of
from cluster.process import start_time
from cluster.simulated import EXIT_CODE, FOREVER, MESSAGE, RUN_FOR, simulated_node


def test_an_indexed_job_completes_with_one_pod_for_each_index(kube: Kube, namespace: str) -> None:
    kube.apply(indexed_job("train", indexes=3), namespace)
    job = kube.wait_condition("Job", "train", "Complete", namespace)
    indexes = {p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for p in kube.list("Pod", namespace)}
    assert job["status"]["completedIndexes"] == "0-2"
    assert indexes == {"0", "1", "2"}


def test_a_pod_ends_as_its_annotations_say(kube: Kube, namespace: str) -> None:
    kube.apply(indexed_job("train", 1, {EXIT_CODE: "65", MESSAGE: '{"reason":"BadData"}', RUN_FOR: "200ms"}), namespace)
    job = kube.wait_condition("Job", "train", "Failed", namespace)
    (pod,) = kube.list("Pod", namespace)
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (65, '{"reason":"BadData"}')
    assert {c["type"]: c.get("reason") for c in job["status"]["conditions"]}["Failed"] == "BackoffLimitExceeded"


def test_a_job_for_gpus_waits_for_a_node_that_has_them(kube: Kube, cluster: ControlPlane, namespace: str) -> None:
    wanted = {"resources": {"limits": {"nvidia.com/gpu": "4"}}}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    kube.apply(indexed_job("train", 2, {RUN_FOR: FOREVER}, container=wanted, tolerations=tolerations), namespace)
    kube.wait_list(
        "Pod", namespace, lambda pods: [condition_of(p, "PodScheduled") for p in pods] == ["False"] * 2, seconds=20
    )
    cluster.add_node(simulated_node("gpu-0", {"nvidia.com/gpu": "8"}, taint="nvidia.com/gpu"))
    try:
        pods = kube.wait_list("Pod", namespace, lambda pods: all(p["status"]["phase"] == "Running" for p in pods))
        assert {pod["spec"]["nodeName"] for pod in pods} == {"gpu-0"}
    finally:
        kube.delete("Node", "gpu-0", namespace=None)


def test_restricted_pod_security_is_enforced(kube: Kube, namespace: str) -> None:
    job = indexed_job("root", 1, container={"securityContext": {"privileged": True}})
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": job["spec"]["template"]["spec"]}
    with pytest.raises(ApiError, match='violates PodSecurity "restricted'):
        kube.create(pod, namespace)


def test_the_api_server_comes_back_with_everything(kube: Kube, cluster: ControlPlane, namespace: str) -> None:
    kube.apply(indexed_job("train", 1, {RUN_FOR: FOREVER}), namespace)
    cluster.restart_api_server()
    kube.wait_list("Pod", namespace, lambda pods: [p["status"]["phase"] for p in pods] == ["Running"])


def test_a_wait_that_fails_says_what_it_last_saw(kube: Kube, namespace: str) -> None:
    kube.apply(indexed_job("train", 1, {RUN_FOR: FOREVER}), namespace)
    kube.wait_list("Pod", namespace, lambda pods: [p["status"]["phase"] for p in pods] == ["Running"])
    with pytest.raises(WaitError, match=r"waited 0\.1 s for Job train to be Complete; last saw: train active=1"):
        kube.wait_condition("Job", "train", "Complete", namespace, seconds=0.1)


def test_a_gang_starts_as_a_whole_or_not_at_all(gang_cluster: ControlPlane) -> None:
    kube = gang_cluster.kube
    gang_cluster.add_node(simulated_node("gpu-0", {"nvidia.com/gpu": "4"}))
    namespace = kube.namespace("gang")
    group = {"apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup", "metadata": {"name": "train"}}
    kube.apply({**group, "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}}, namespace)
    wanted = {"resources": {"limits": {"nvidia.com/gpu": "4"}}}
    job = indexed_job("train", 2, {RUN_FOR: FOREVER}, container=wanted, schedulingGroup={"podGroupName": "train"})
    kube.apply(job, namespace)
    pods = kube.wait_list(
        "Pod", namespace, lambda pods: [condition_of(p, "PodScheduled") for p in pods] == ["False"] * 2, seconds=20
    )
    assert not any(pod["spec"].get("nodeName") for pod in pods), "one of two pods was started alone"
    gang_cluster.add_node(simulated_node("gpu-1", {"nvidia.com/gpu": "4"}))
    kube.wait_list("Pod", namespace, lambda pods: all(p["status"]["phase"] == "Running" for p in pods))


def test_down_leaves_nothing_and_up_is_idempotent() -> None:
    other = ControlPlane(f"down-{os.getpid()}", nodes=1)
    try:
        other.up()
        pids = [daemon.pid() for daemon in other.daemons()]
        other.up()
        assert [daemon.pid() for daemon in other.daemons()] == pids, "a second up started programs again"
    finally:
        other.down()
    assert all(pid and start_time(pid) is None for pid in pids), "a program still runs"
    assert not other.state.exists()


def test_a_program_that_crashed_is_started_again_by_up(cluster: ControlPlane, kube: Kube) -> None:
    scheduler = next(daemon for daemon in cluster.daemons() if daemon.name == "kube-scheduler")
    scheduler.kill()
    cluster.up()
    assert scheduler.alive()
    assert kube.ready()
