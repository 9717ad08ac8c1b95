"""The operator with the rights of the chart's ServiceAccount: enough for everything it does, and nothing more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster import programs
from cluster.control_plane import ControlPlane, free_ports
from cluster.kube import Kube
from integration import charts
from integration.conftest import started
from integration.jobs import job, state
from integration.operators import Operator

pytestmark = pytest.mark.skipif(
    bool(programs.missing(("helm",))), reason="helm is not built (python -m cluster build builds it)"
)

MODES = {"one namespace": True, "the whole cluster": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """One of its own: the chart brings the CRDs, and an operator for the whole cluster disturbs others' jobs."""
    yield from started(ControlPlane(f"rights-{os.getpid()}"))


@pytest.fixture(scope="module")
def kube(cluster: ControlPlane) -> Kube:
    return cluster.kube


@dataclass
class Installed:
    """The chart's objects in a cluster, and an operator process that acts as its first pod."""

    kube: Kube
    home: str
    jobs: str
    operator: Operator
    pod: str

    def may(self, verb: str, what: str, namespace: str, name: str = "") -> bool:
        """Whether the API server would let the operator; ``what`` is ``[group:]resource[/subresource]``."""
        group, _, resource = what.rpartition(":")
        resource, _, sub = resource.partition("/")
        asked = {"verb": verb, "group": group, "resource": resource, "subresource": sub, "name": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": f"system:serviceaccount:{self.home}:{charts.RELEASE}",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {"namespace": namespace, **asked},
            },
        }
        path = self.kube.path("authorization.k8s.io/v1/SubjectAccessReview")
        return self.kube.request("POST", path, review)["status"]["allowed"]


@pytest.fixture(scope="module", params=MODES)
def chart(request, kube: Kube, tmp_path_factory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("chart")
    word = "one" if MODES[request.param] else "all"
    home, jobs = kube.namespace(f"home-{word}"), kube.namespace(f"jobs-{word}")
    objects = charts.installed(charts.render(home, *(["--set", f"namespaces={{{jobs}}}"] if word == "one" else [])))
    for obj in objects:
        kube.apply(obj)
    for name in ("trainingjobs", "acceleratorpools"):
        kube.wait_condition("CustomResourceDefinition", f"{name}.trainwright.dev", "Established", None)
    pods = kube.wait_list("Pod", home, lambda found: len(found) == 2, labels="app.kubernetes.io/name")
    pod = pods[0]["metadata"]["name"]
    if MODES[request.param]:
        assert charts.settings(objects)["NAMESPACES"] == jobs
    own = charts.as_service_account(kube, home, charts.RELEASE, folder / "kubeconfig")
    operator = (
        Operator(own, jobs, folder, {"NAMESPACES": "", **charts.settings(objects), **settled(home, pod)})
        .start()
        .wait_leading()
    )
    yield Installed(kube, home, jobs, operator, pod)
    operator.stop()
    for obj in objects:
        if obj["kind"].startswith("ClusterRole"):
            kube.delete(obj["kind"], obj["metadata"]["name"], None)


def settled(home: str, pod: str) -> dict[str, str]:
    """What the downward API would have set, and a port that is free here."""
    return {"OPERATOR_NAMESPACE": home, "POD_NAME": pod, "PROGRESS_PORT": str(free_ports(1)[0])}


def test_it_does_all_its_work_and_is_refused_nothing(chart: Installed) -> None:
    kube, jobs = chart.kube, chart.jobs
    large = "x = 1\n" * 10_000
    scripted = job("scripted").script(inline=large).without("spec.trainingArguments")
    kube.apply(job("two", run_for="1s").manifest(), jobs)
    kube.apply(scripted.manifest(), jobs)
    kube.apply(
        job("gone").with_("spec.ttlSecondsAfterFinished", 0).with_("spec.deleteAfterFinished", True).manifest(), jobs
    )
    state(kube, jobs, "Succeeded", "two")
    state(kube, jobs, "Succeeded", "scripted")
    assert any("scripted" in one["metadata"]["name"] for one in kube.list("ConfigMap", jobs))
    kube.wait_gone("TrainingJob", "gone", jobs)
    refused = [name for name in chart.operator.metrics() or {} if 'code="403"' in name]
    assert refused == []
    assert "forbidden" not in chart.operator.log.read_text().lower()


def test_it_reads_why_pods_are_refused(chart: Installed) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    chart.kube.apply(quota, chart.jobs)
    chart.kube.wait_for("ResourceQuota", "none", chart.jobs, lambda obj: obj.get("status", {}).get("hard"))
    chart.kube.apply(job("waits").manifest(), chart.jobs)
    queued = chart.kube.wait_condition("TrainingJob", "waits", "Queued", chart.jobs)
    message = {one["type"]: one["message"] for one in queued["status"]["conditions"]}["Queued"]
    assert "exceeded quota: none" in message
    chart.kube.delete("ResourceQuota", "none", chart.jobs)


def test_the_leader_marks_its_own_pod_and_makes_the_one_secret(chart: Installed) -> None:
    pod = chart.kube.get("Pod", chart.pod, chart.home)
    assert pod["metadata"]["labels"]["trainwright.dev/leader"] == "true"
    service = chart.kube.get("Service", "trainwright-progress", chart.home)
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert {"tls.crt", "tls.key"} <= set(chart.kube.get("Secret", "trainwright-progress-tls", chart.home)["data"])


def test_a_secret_that_is_gone_is_made_again_by_a_restarted_operator_and_refused_it_works_without(
    chart: Installed,
) -> None:
    """Only the rights of the chart are used: a plain create would be refused, for it has no name to be judged by."""
    kube, secret = chart.kube, ("Secret", "trainwright-progress-tls", chart.home)
    kube.delete(*secret)
    restart(chart)
    assert {"ca.crt", "ca.key", "tls.crt", "tls.key"} == set(kube.get(*secret)["data"])
    chart.operator.wait_serving()
    role = kube.get("Role", "trainwright-own", chart.home)
    kube.patch("Role", "trainwright-own", {"rules": without_secrets(role["rules"])}, chart.home)
    kube.delete(*secret)
    restart(chart)
    ready = chart.operator.probe("/readyz")
    assert ready.startswith("ok: leads; progress is not served, and jobs show no steps before they end: Secret")
    assert "403 Forbidden" in ready
    kube.apply(job("unseen", run_for="1s").manifest(), chart.jobs)
    state(kube, chart.jobs, "Succeeded", "unseen")
    assert chart.operator.metrics()["trainwright_progress_serving"] == 0
    kube.patch("Role", "trainwright-own", {"rules": role["rules"]}, chart.home)
    chart.operator.wait_serving()
    assert kube.get(*secret)["data"]


def restart(chart: Installed) -> None:
    """Another process in the place of one that is killed; its Lease goes by an admin's hand, and not with its time."""
    chart.operator.kill()
    chart.kube.delete("Lease", charts.RELEASE, chart.home)
    chart.operator.start().wait_leading()


def without_secrets(rules):
    return [rule for rule in rules if rule["resources"] != ["secrets"]]


FORBIDDEN = [
    ("get", "secrets", "home", "another"),
    ("list", "secrets", "home", ""),
    ("watch", "secrets", "home", ""),
    ("create", "secrets", "home", ""),
    ("create", "secrets", "home", "another"),
    ("create", "secrets", "jobs", "trainwright-progress-tls"),
    ("delete", "secrets", "home", "trainwright-progress-tls"),
    ("get", "secrets", "jobs", "trainwright-progress-tls"),
    ("list", "secrets", "jobs", ""),
    ("get", "coordination.k8s.io:leases", "home", "another"),
    ("update", "coordination.k8s.io:leases", "jobs", "trainwright"),
    ("create", "pods", "jobs", ""),
    ("delete", "pods", "jobs", "any"),
    ("patch", "pods", "jobs", "any"),
    ("create", "pods/exec", "jobs", "any"),
    ("get", "pods/log", "jobs", "any"),
    ("delete", "pods", "home", "any"),
    ("list", "configmaps", "jobs", ""),
    ("list", "persistentvolumeclaims", "jobs", ""),
    ("create", "persistentvolumeclaims", "jobs", ""),
    ("update", "trainwright.dev:trainingjobs", "jobs", "any"),
    ("patch", "trainwright.dev:trainingjobs", "jobs", "any"),
    ("create", "trainwright.dev:trainingjobs", "jobs", ""),
    ("patch", "trainwright.dev:acceleratorpools", "jobs", "any"),
    ("create", "apps:deployments", "jobs", ""),
    ("create", "rbac.authorization.k8s.io:rolebindings", "jobs", ""),
    ("impersonate", "users", "jobs", "anyone"),
    ("list", "nodes", "jobs", ""),
]


@pytest.mark.parametrize(("verb", "what", "where", "name"), FORBIDDEN)
def test_the_operator_has_no_rights_beyond_its_work(
    chart: Installed, verb: str, what: str, where: str, name: str
) -> None:
    assert not chart.may(verb, what, getattr(chart, where), name)


def test_it_may_serve_its_namespaces_and_no_others(chart: Installed) -> None:
    everywhere = chart.jobs == "jobs-all"
    assert chart.may("list", "trainwright.dev:trainingjobs", chart.jobs)
    assert chart.may("list", "trainwright.dev:trainingjobs", "default") is everywhere
    assert chart.may("create", "batch:jobs", "default") is everywhere


@pytest.mark.parametrize("what", ["scheduling.k8s.io:podgroups", "resource.k8s.io:resourceclaimtemplates"])
def test_it_may_make_what_an_attempt_has_beside_its_jobs(chart: Installed, what: str) -> None:
    assert all(chart.may(verb, what, chart.jobs) for verb in ("get", "create", "delete"))
    assert not any(chart.may(verb, what, chart.jobs) for verb in ("list", "update", "patch"))


def test_what_helm_test_asks_is_answered(chart: Installed) -> None:
    (container,) = charts.only(charts.render(chart.home), "Pod")["spec"]["containers"]
    asked = subprocess.run(
        [sys.executable, *container["command"][1:], *container["args"]],
        env={"OPERATOR": f"http://127.0.0.1:{chart.operator.http_port}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (asked.returncode, asked.stdout) == (0, "the operator is ready and tells its metrics\n"), asked.stderr
