"""Faults are what they say: each one is seen by the cluster, and undone without a trace."""

from __future__ import annotations

import subprocess
import time

import pytest

from cluster import programs
from cluster.accelerators import VENDORS, advertise, withdraw
from cluster.jobs import indexed_job, spread
from cluster.kind.faults import Faults
from cluster.kind.provider import Kind
from cluster.kube import Kube, Object, condition_of

FOREVER = "import time; time.sleep(3600)"
SOON = [
    {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
    for what in ("unreachable", "not-ready")
]


def start(kube: Kube, namespace: str, image: str, command: str = FOREVER, indexes: int = 2, **pod) -> list[Object]:
    """Start a Job with a pod on each node, and return its pods when they run."""
    container = {"image": image, "command": ["python", "-c", command], **pod.pop("container", {})}
    pod = {"tolerations": SOON, "terminationGracePeriodSeconds": 2, "affinity": spread("work"), **pod}
    kube.apply(indexed_job("work", indexes, container=container, **pod), namespace)
    return kube.wait_list(
        "Pod", namespace, lambda pods: len(pods) == indexes and all(map(runs, pods)), 60, what="to run"
    )


def runs(pod: Object) -> bool:
    return pod["status"]["phase"] == "Running" and condition_of(pod, "Ready") == "True"


def test_kill_ends_the_container_from_outside(kube: Kube, namespace: str, operator_image: str, faults: Faults) -> None:
    pod = start(kube, namespace, operator_image, indexes=1)[0]["metadata"]["name"]
    faults.kill(pod, namespace)
    ended = kube.wait_for("Pod", pod, namespace, lambda pod: pod["status"]["phase"] == "Failed", 30, "to fail")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_a_stopped_node_is_lost_and_comes_back(kube: Kube, namespace: str, operator_image: str, faults: Faults) -> None:
    lost, kept = start(kube, namespace, operator_image)
    node = lost["spec"]["nodeName"]
    faults.stop(node)
    pod = kube.wait_for(
        "Pod",
        lost["metadata"]["name"],
        namespace,
        lambda p: p["metadata"].get("deletionTimestamp"),
        120,
        "to be evicted",
    )
    assert condition_of(pod, "DisruptionTarget") == "True"
    assert runs(kube.get("Pod", kept["metadata"]["name"], namespace)), "a pod on another node was touched"
    faults.start(node)
    kube.wait_condition("Job", "work", "Failed", namespace, 60)


def test_a_drained_node_takes_no_pods(kube: Kube, namespace: str, operator_image: str, faults: Faults) -> None:
    node = start(kube, namespace, operator_image, indexes=1)[0]["spec"]["nodeName"]
    faults.drain(node)
    kube.wait_condition("Job", "work", "Failed", namespace, 60)
    kube.delete("Job", "work", namespace)
    kube.wait_gone("Job", "work", namespace)
    assert start(kube, namespace, operator_image, indexes=1)[0]["spec"]["nodeName"] != node


TALK = """
import os, socket, time
me = int(os.environ["JOB_COMPLETION_INDEX"])
listener = socket.create_server(("", 5000))
while True:
    started = time.monotonic()
    try:
        socket.create_connection((f"work-{1 - me}.work", 5000), timeout=1).close()
        print(f"reached {time.monotonic() - started:.3f}", flush=True)
    except OSError as error:
        print("unreachable", flush=True)
    time.sleep(0.3)
"""


def test_a_cut_node_is_not_reached_until_it_is_reconnected(
    kube: Kube, namespace: str, operator_image: str, faults: Faults
) -> None:
    spec = {"clusterIP": "None", "selector": {"batch.kubernetes.io/job-name": "work"}, "publishNotReadyAddresses": True}
    kube.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "work"}, "spec": spec}, namespace)
    far, near = start(kube, namespace, operator_image, TALK, subdomain="work", tolerations=[])
    wait_for_log(kube, near, "reached")
    faults.cut(far["spec"]["nodeName"])
    wait_for_log(kube, near, "unreachable")
    faults.mend(far["spec"]["nodeName"])
    wait_for_log(kube, near, "reached")


def test_a_paused_node_is_silent_until_it_goes_on(kube: Kube, kind: Kind, faults: Faults) -> None:
    node = kind.workers[-1]
    faults.pause(node)
    before = renewed(kube, node)
    time.sleep(12)  # a kubelet renews its lease every 10 s
    assert renewed(kube, node) == before
    faults.resume(node)
    kube.wait_for(
        "Lease", node, "kube-node-lease", lambda lease: lease["spec"]["renewTime"] != before, 30, "to be renewed"
    )


def renewed(kube: Kube, node: str) -> str:
    return kube.get("Lease", node, "kube-node-lease")["spec"]["renewTime"]


def test_a_slowed_node_is_slower(kube: Kube, kind: Kind, faults: Faults) -> None:
    """What was slowed takes this long on any machine; what was not is quicker at least once, on a busy one too."""
    node = kind.workers[0]
    assert any(seconds_to_send(kind, node) < 1 for _ in range(20))
    faults.slow(node, delay="1s", rate="1mbit")
    assert seconds_to_send(kind, node) >= 1
    faults.hasten(node)
    assert any(seconds_to_send(kind, node) < 1 for _ in range(20))


def test_the_api_server_restarts(kube: Kube, namespace: str, operator_image: str, faults: Faults) -> None:
    pod = start(kube, namespace, operator_image, indexes=1)[0]
    faults.restart_api_server()
    assert kube.get("Pod", pod["metadata"]["name"], namespace)["metadata"]["uid"] == pod["metadata"]["uid"]


WRITE = """
import errno
try:
    open("/output/more", "w").write("x" * 99999)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_a_full_disk_refuses_to_be_written(
    kube: Kube, kind: Kind, namespace: str, operator_image: str, faults: Faults
) -> None:
    node = kind.workers[0]
    faults.small_claim("small", namespace, node)
    faults.fill("small", namespace, node)
    volumes = [{"name": "output", "persistentVolumeClaim": {"claimName": "small"}}]
    container = {
        "image": operator_image,
        "command": ["python", "-c", WRITE],
        "volumeMounts": [{"name": "output", "mountPath": "/output"}],
    }
    kube.apply(indexed_job("write", 1, container=container, volumes=volumes), namespace)
    kube.wait_condition("Job", "write", "Complete", namespace, 60)
    (pod,) = kube.list("Pod", namespace)
    assert kube.logs(pod["metadata"]["name"], namespace).strip() == "ENOSPC"


@pytest.mark.parametrize("resource", VENDORS)
def test_a_pod_for_accelerators_runs_on_the_node_that_says_it_has_them(
    kube: Kube, kind: Kind, namespace: str, operator_image: str, resource: str
) -> None:
    node, its_labels = kind.workers[1], {"nodeSelector": VENDORS[resource]}
    advertise(kube, node, resource, 4)
    try:
        wanted = {"resources": {"limits": {resource: "2"}}}
        tolerations = [{"key": resource, "operator": "Exists"}]
        (pod,) = start(
            kube, namespace, operator_image, indexes=1, tolerations=tolerations, container=wanted, **its_labels
        )
        assert pod["spec"]["nodeName"] == node
        kube.apply(indexed_job("intruder", 1, container={"image": operator_image}, **its_labels), namespace)
        labels = "batch.kubernetes.io/job-name=intruder"
        (kept_out,) = kube.wait_list("Pod", namespace, waits_for_a_node, 30, labels, "to find no node")
        assert "untolerated taint" in kept_out["status"]["conditions"][0]["message"]
    finally:
        withdraw(kube, node, resource)


def waits_for_a_node(pods: list[Object]) -> bool:
    return [condition_of(pod, "PodScheduled") for pod in pods] == ["False"]


def test_exec_runs_in_a_pod(kube: Kube, namespace: str, operator_image: str) -> None:
    pod = start(kube, namespace, operator_image, indexes=1)[0]["metadata"]["name"]
    kubectl = [str(programs.program("kubectl")), f"--kubeconfig={kube.kubeconfig}", f"--namespace={namespace}"]
    said = subprocess.run([*kubectl, "exec", pod, "--", "id", "-u"], capture_output=True, text=True, timeout=30)
    assert (said.stdout.strip(), said.returncode) == ("1000", 0)


def wait_for_log(kube: Kube, pod: Object, word: str, seconds: float = 30) -> None:
    """Wait until the pod's newest line begins with the word."""
    deadline, line = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        line = kube.logs(pod["metadata"]["name"], pod["metadata"]["namespace"], tailLines="1").strip()
        if line.startswith(word):
            return
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:g} s for a line {word!r}; last saw {line!r}")


def seconds_to_send(kind: Kind, node: str) -> float:
    """How long the node takes to send 400 kB to the control plane's node."""
    docker, other = kind.docker, kind.control_plane
    docker.run("exec", "--detach", other, "timeout", "60", "socat", "-u", "TCP-LISTEN:7777,reuseaddr", "OPEN:/dev/null")
    started = time.monotonic()
    send = f"head -c 400000 /dev/zero | socat -u - TCP:{other}:7777,retry=20,interval=0.1"
    docker.run("exec", node, "sh", "-c", send)
    return time.monotonic() - started
