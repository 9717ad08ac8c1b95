"""Upkeep on a real cluster: a Secret or a Service that is lost, a rollout that does not get ready, names that fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.kube import Kube, Object, condition_of
from e2e.jobs import ended, job, simple
from integration.charts import Helm

OPERATORS = "app.kubernetes.io/name=trainwright-operator"
SECRET = "trainwright-progress-tls"


def operators(kube: Kube, release: Helm) -> list[Object]:
    return kube.list("Pod", release.namespace, OPERATORS)


def all_ready(pods: list[Object]) -> bool:
    return len(pods) == 2 and all(condition_of(pod, "Ready") == "True" for pod in pods)


def leader(kube: Kube, release: Helm) -> str:
    lease = kube.wait_for("Lease", "trainwright", release.namespace, lambda one: one["spec"].get("holderIdentity"))
    return str(lease["spec"]["holderIdentity"])


def trains(kube: Kube, namespace: str, name: str) -> None:
    manifest = simple()
    manifest["metadata"]["name"] = name
    kube.apply(manifest, namespace)
    assert job(kube, namespace, ended, "to end", name=name)["status"]["state"] == "Succeeded"


def test_a_lost_secret_takes_no_operator_down(release: Helm, kube: Kube, namespace: str) -> None:
    kube.delete("Secret", SECRET, release.namespace)
    for pod in operators(kube, release):
        kube.delete("Pod", pod["metadata"]["name"], release.namespace)
    trains(kube, namespace, "after-the-secret")
    kube.wait_for("Secret", SECRET, release.namespace, lambda one: "tls.crt" in one.get("data", {}))
    pods = kube.wait_list("Pod", release.namespace, all_ready, 120, labels=OPERATORS, what="to be ready")
    assert all(one["status"]["containerStatuses"][0]["restartCount"] == 0 for one in pods)


@pytest.fixture
def cut_off(release: Helm, kube: Kube) -> Iterator[None]:
    """A new revision whose pods reach no API server."""
    nowhere = [{"name": "KUBERNETES_SERVICE_HOST", "value": "203.0.113.1"}]
    (container,) = kube.get("Deployment", "trainwright", release.namespace)["spec"]["template"]["spec"]["containers"]

    def revised(env: list[Object]) -> None:
        template = {"spec": {"template": {"spec": {"containers": [{**container, "env": env}]}}}}
        kube.patch("Deployment", "trainwright", template, release.namespace)

    revised([*container["env"], *nowhere])
    yield
    revised(container["env"])
    kube.wait_list("Pod", release.namespace, all_ready, 180, labels=OPERATORS, what="to be ready again")


def test_a_rollout_that_never_gets_ready_leaves_the_leader_at_work(
    release: Helm, kube: Kube, namespace: str, request: pytest.FixtureRequest
) -> None:
    before, leads = {pod["metadata"]["name"] for pod in operators(kube, release)}, leader(kube, release)
    request.getfixturevalue("cut_off")
    kube.wait_list(
        "Pod", release.namespace, lambda pods: len(pods) == 3, 60, labels=OPERATORS, what="to have a third among them"
    )
    trains(kube, namespace, "meanwhile")
    now = operators(kube, release)
    assert before <= {pod["metadata"]["name"] for pod in now if condition_of(pod, "Ready") == "True"}
    assert leader(kube, release) == leads
    (new,) = (pod for pod in now if pod["metadata"]["name"] not in before)
    assert condition_of(new, "Ready") == "False"


def gang(name: str, **spec: object) -> Object:
    manifest = simple(accelerator={"nodes": 2}, **spec)
    manifest["metadata"]["name"] = name
    return manifest


def test_a_service_that_is_deleted_under_its_pods_is_back_at_once(release: Helm, kube: Kube, namespace: str) -> None:
    kube.apply(gang("parted", script={"inline": "import time; time.sleep(20)"}), namespace)
    first = kube.wait_for("Service", "tj-parted", namespace)["metadata"]["uid"]
    kube.delete("Service", "tj-parted", namespace)
    kube.wait_for("Service", "tj-parted", namespace, lambda one: one["metadata"]["uid"] != first, 20)
    done = job(kube, namespace, ended, "to end", name="parted")["status"]
    assert (done["state"], done["restarts"]["total"]) == ("Succeeded", 0)


@pytest.fixture
def no_names(kube: Kube) -> Iterator[None]:
    """The cluster's DNS answers nobody."""
    before = kube.get("Deployment", "coredns", "kube-system")["spec"]["replicas"]

    def scaled(replicas: int) -> None:
        kube.patch("Deployment", "coredns", {"spec": {"replicas": replicas}}, "kube-system")
        kube.wait_for(
            "Deployment", "coredns", "kube-system", lambda one: one["status"].get("readyReplicas", 0) == replicas, 120
        )

    scaled(0)
    yield
    scaled(before)


def test_pods_that_cannot_resolve_a_name_are_reported_though_none_of_their_pushes_arrive(
    release: Helm, kube: Kube, namespace: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("no_names")
    kube.apply(gang("nameless"), namespace)
    held = job(kube, namespace, not_met, "to be told", name="nameless")["status"]
    running = next(one for one in held["conditions"] if one["type"] == "Running")
    assert "nameless-0-1-0.tj-nameless:29400" in running["message"]
    assert "DNS" in running["message"]
    pods = kube.wait_list("Pod", namespace, lambda pods: len(pods) == 2, labels="trainwright.dev/job=nameless")
    logs = [kube.logs(pod["metadata"]["name"], namespace) for pod in pods]
    assert all("nameless-0-1-0.tj-nameless does not resolve" in log for log in logs), logs


def not_met(status: Object) -> bool:
    return (status.get("display") or {}).get("state") == "Running (PodsNotMet)"
