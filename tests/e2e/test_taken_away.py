"""How an attempt's end is judged on a real cluster: what was taken away unseen, what ended by itself, what goes on."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from cluster import programs
from cluster.kind.faults import Faults
from cluster.kube import Kube, Object
from e2e.jobs import ended, job, simple
from integration.charts import Helm

OPERATORS = "app.kubernetes.io/name=trainwright-operator"
SLEEP = {"inline": "import time; time.sleep(600)"}


def named(name: str, **spec: object) -> Object:
    manifest = simple(**spec)
    manifest["metadata"]["name"] = name
    return manifest


def running(kube: Kube, namespace: str, name: str) -> Object:
    return job(kube, namespace, lambda status: status.get("state") == "Running", "to run", name=name)


def pods_of(kube: Kube, namespace: str, name: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in kube.list("Pod", namespace, f"trainwright.dev/job={name}")]


@pytest.mark.parametrize("nodes", [1, 2])
def test_pods_that_are_evicted_while_no_operator_leads_are_not_counted(
    release: Helm, kube: Kube, namespace: str, nodes: int
) -> None:
    name = f"drained-{nodes}"
    kube.apply(named(name, script=SLEEP, accelerator={"nodes": nodes}, maxRestarts=0), namespace)
    running(kube, namespace, name)
    for pod in kube.list("Pod", release.namespace, OPERATORS):
        kube.delete("Pod", pod["metadata"]["name"], release.namespace, gracePeriodSeconds=0)
    for pod in pods_of(kube, namespace, name):
        kube.evict(pod, namespace)
    again = job(kube, namespace, lambda status: len(status.get("attempts", ())) == 2, "to begin again", name=name)
    assert again["status"]["restarts"] == {"total": 1, "counted": 0, "disruptions": 1}
    assert again["status"]["attempts"][0]["outcome"] == "Disrupted"


def test_a_script_that_says_stopped_though_nobody_asked_is_no_disruption(
    release: Helm, kube: Kube, namespace: str
) -> None:
    kube.apply(named("says-143", script={"inline": "import sys; sys.exit(143)"}, maxRestarts=1), namespace)
    failed = job(kube, namespace, ended, "to end", name="says-143")["status"]
    assert (failed["state"], failed["restarts"]["counted"], failed["restarts"]["disruptions"]) == ("Failed", 1, 0)
    assert "ended with exit code 143 by itself" in failed["attempts"][0]["message"]


def test_a_process_that_is_killed_in_its_pod_is_no_failure(
    release: Helm, kube: Kube, namespace: str, faults: Faults
) -> None:
    kube.apply(named("killed", script=SLEEP, maxRestarts=0), namespace)
    running(kube, namespace, "killed")
    faults.kill(pods_of(kube, namespace, "killed")[0], namespace, "TERM")
    again = job(kube, namespace, lambda status: len(status.get("attempts", ())) == 2, "to begin again", name="killed")
    assert again["status"]["attempts"][0]["reason"] == "UnexplainedStop"


def test_a_signal_on_a_node_that_is_announced_to_go_is_explained(
    release: Helm, kube: Kube, namespace: str, faults: Faults
) -> None:
    kube.apply(named("moved", script=SLEEP, maxRestarts=0), namespace)
    running(kube, namespace, "moved")
    (pod,) = pods_of(kube, namespace, "moved")
    node = kube.get("Pod", pod, namespace)["spec"]["nodeName"]
    taints = kube.get("Node", node, None)["spec"].get("taints", [])
    leaving = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
    kube.patch("Node", node, {"spec": {"taints": [*taints, leaving]}}, None)
    try:
        faults.kill(pod, namespace, "TERM")
        again = job(kube, namespace, lambda one: len(one.get("attempts", ())) == 2, "to begin again", name="moved")
        kube.wait_list(
            "Pod",
            namespace,
            lambda pods: any(one["spec"].get("nodeName") not in (None, node) for one in pods),
            what="to be placed on another node",
        )
    finally:
        kube.patch("Node", node, {"spec": {"taints": taints}}, None)
    attempt = again["status"]["attempts"][0]
    assert (attempt["outcome"], attempt["reason"]) == ("Disrupted", "NodeLeaving")
    assert attempt["message"] == f"stopped on request; node {node} is taken by GKE, as for maintenance"


def test_a_copy_that_kubectl_debug_makes_decides_nothing(release: Helm, kube: Kube, namespace: str) -> None:
    kube.apply(named("copied", script={"inline": "import time; time.sleep(40)"}), namespace)
    running(kube, namespace, "copied")
    kubectl = [str(programs.program("kubectl")), f"--kubeconfig={kube.kubeconfig}", f"--namespace={namespace}"]
    (pod,) = pods_of(kube, namespace, "copied")
    copy = ["debug", pod, "--profile=restricted", "--copy-to=aside", "--keep-labels", "--container=trainer"]
    subprocess.run([*kubectl, *copy, "--", "sh", "-c", "exit 65"], check=True, timeout=60)
    done = job(kube, namespace, ended, "to end", name="copied")["status"]
    assert done["state"] == "Succeeded", done
    assert all(one.get("reason") != "BadData" for one in done["attempts"])


@pytest.fixture
def sidecars(kube: Kube, namespace: str, operator_image: str) -> Iterator[None]:
    """Every pod of the namespace gets an ordinary container beside its own, as from a mesh without native sidecars."""
    match = {
        "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
    }
    patch = f"""[JSONPatch{{op: "add", path: "/spec/containers/-", value: Object.spec.containers{{
        name: "proxy", image: "{operator_image}", command: ["sleep", "3600"],
        securityContext: Object.spec.containers.securityContext{{
            allowPrivilegeEscalation: false, runAsNonRoot: true, runAsUser: 1000,
            capabilities: Object.spec.containers.securityContext.capabilities{{drop: ["ALL"]}},
            seccompProfile: Object.spec.containers.securityContext.seccompProfile{{type: "RuntimeDefault"}}
        }}
    }}}}]"""
    version = "admissionregistration.k8s.io/v1"
    policy = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": match,
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }
    binding = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": namespace},
        "spec": {"policyName": namespace},
    }
    kube.apply(policy)
    kube.apply(binding)
    _wait_until_injected(kube, namespace, operator_image)
    yield
    kube.delete(f"{version}/MutatingAdmissionPolicyBinding", namespace, None)
    kube.delete(f"{version}/MutatingAdmissionPolicy", namespace, None)


def _wait_until_injected(kube: Kube, namespace: str, image: str) -> None:
    """The API server takes a moment to follow a new policy."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "probe", "image": image, "securityContext": security}]},
    }
    for _ in range(100):
        if len(kube.create(probe, namespace, dryRun="All")["spec"]["containers"]) == 2:
            return
        time.sleep(0.2)
    raise AssertionError("the policy was not followed within 20 s")


@pytest.mark.parametrize(("code", "state"), [(0, "Succeeded"), (65, "Failed")])
def test_a_job_ends_beside_a_sidecar_that_does_not(
    release: Helm, kube: Kube, namespace: str, sidecars: None, code: int, state: str
) -> None:
    name = f"meshed-{code}"
    kube.apply(named(name, script={"inline": f"import sys; sys.exit({code})"}, accelerator={"nodes": 2}), namespace)
    done = job(kube, namespace, ended, "to end", name=name)["status"]
    assert done["state"] == state
    assert "container proxy went on after the trainer had ended" in json.dumps(done["conditions"])
    kube.wait_list("Pod", namespace, lambda pods: not pods, 90, f"trainwright.dev/job={name}", "to be let go")


def test_a_lost_node_reads_as_what_it_is_while_its_pods_are_waited_for(
    release: Helm, kube: Kube, namespace: str, faults: Faults
) -> None:
    kube.apply(named("lost", script=SLEEP, maxRestarts=0), namespace)
    running(kube, namespace, "lost")
    (pod,) = kube.list("Pod", namespace, "trainwright.dev/job=lost")
    faults.stop(pod["spec"]["nodeName"])
    held = job(kube, namespace, lambda status: status.get("state") == "Restarting", "to say so", 150, "lost")["status"]
    assert "DeletionByTaintManager" in held["display"]["why"]
    assert held["attempts"][0].get("endTime") is None
    again = job(kube, namespace, lambda status: len(status["attempts"]) == 2, "to begin again", 150, "lost")["status"]
    assert again["restarts"]["counted"] == 0
