"""The chart with the real helm, and the manifests made from it with the real kubectl."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import make_job
from cluster import programs
from cluster.control_plane import ControlPlane
from cluster.kube import Kube, documents
from cluster.paths import CHECKOUT
from cluster.simulated import FOREVER
from integration import charts
from integration.charts import CHART, Helm, ProgramError
from integration.conftest import started
from integration.jobs import finish, job, state
from integration.operators import Operator
from trainwright_operator.api.manifest import read
from trainwright_operator.cluster.settings import PREFIX, Settings
from trainwright_operator.core.children import children
from trainwright_operator.core.placement.pools import BUILTIN, place

pytestmark = pytest.mark.skipif(
    bool(programs.missing(("helm", "kubectl"))), reason="helm is not built (python -m cluster build builds it)"
)
BUNDLE = CHECKOUT / "charts" / "bundle" / "trainwright.yaml"
POOL = ("--set", "pools.big.spec.vendor=cpu", "--set", "pools.big.default=true")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """One of its own, for the chart brings the CRDs."""
    yield from started(ControlPlane(f"chart-{os.getpid()}"))


@pytest.fixture(scope="module")
def kube(cluster: ControlPlane) -> Kube:
    return cluster.kube


@pytest.fixture
def helm(kube: Kube, namespace: str) -> Iterator[Helm]:
    """Helm in a namespace that enforces restricted Pod Security; nothing of the chart is left afterwards."""
    helm = Helm(kube, namespace)
    yield helm
    if charts.RELEASE in helm.run("list", "--short"):
        helm.uninstall()
    for name in ("trainingjobs", "acceleratorpools"):
        kube.delete("CustomResourceDefinition", f"{name}.trainwright.dev", None)
        without_crd(kube, f"{name}.trainwright.dev")


def without_crd(kube: Kube, name: str) -> None:
    """Wait until it is gone. An API server whose storage of it is still being prepared tries again after a minute."""
    kube.wait_gone("CustomResourceDefinition", name, None, seconds=180)


def own_job() -> dict:
    return make_job("train").without("metadata.namespace").without("metadata.uid").manifest()


def previous_chart(folder: Path) -> Path:
    """The chart of a release whose TrainingJob had no `schedulerName`."""
    shutil.copytree(CHART, folder / "trainwright", symlinks=False)
    path = folder / "trainwright" / "files" / "crds" / "trainwright.dev_trainingjobs.yaml"
    crd = yaml.safe_load(path.read_text())
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["podTemplate"][
        "properties"
    ]["schedulerName"]
    path.write_text(yaml.safe_dump(crd, sort_keys=False))
    return folder / "trainwright"


def fields_of_template(crd: dict) -> dict:
    job = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return job["properties"]["spec"]["properties"]["podTemplate"]["properties"]


def stored_fields(kube: Kube) -> dict:
    return fields_of_template(kube.get("CustomResourceDefinition", "trainingjobs.trainwright.dev", None))


# What needs no cluster

REFUSED = {
    "replica=3": "at '': additional properties 'replica' not allowed",
    "image.tagg=x": "at '/image': additional properties 'tagg' not allowed",
    "image.digest=latest": "at '/image/digest'",
    "replicas=0": "at '/replicas': minimum: got 0, want 1",
    "progress.port=80": "at '/progress/port': minimum",
    "progress.port=8080": "at '/progress/port'",
    "serviceAccount.name=a b: c": "at '/serviceAccount/name'",
    "pools.a\\.\\.b.spec.vendor=cpu": "'a..b' does not match pattern",
    "logLevel=info": "at '/logLevel': value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'",
    "namespaces={No}": "at '/namespaces/0'",
    "extraEnv[0].nam=x": "at '/extraEnv/0': additional properties 'nam' not allowed",
    "resources.limits.memory=lots": "at '/resources/limits/memory'",
    "resources.limits.memory=..Gi": "at '/resources/limits/memory'",
    "tolerations[0].efect=NoSchedule": "at '/tolerations/0': additional properties 'efect' not allowed",
    "pools.h100.spec.vendor=intel": "at '/pools/h100/spec/vendor': value must be one of 'cpu', 'nvidia', 'amd', 'tpu'",
    "pools.h100.vendor=nvidia": "at '/pools/h100': additional properties 'vendor' not allowed",
}


@pytest.mark.parametrize("value", REFUSED)
def test_a_wrong_value_is_refused_with_its_place(value: str) -> None:
    with pytest.raises(ProgramError) as refused:
        charts.render("home", "--set", value)
    assert REFUSED[value] in str(refused.value)


def test_a_name_of_digits_is_text_wherever_it_stands() -> None:
    values = {
        "pools": {"4090": {"spec": {"vendor": "nvidia"}}},
        "namespaces": ["123", "true"],
        "serviceAccount": {"name": "123"},
        "priorityClassName": "123",
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "grafanaDashboard": {"enabled": True},
    }
    told = [word for key, value in values.items() for word in ("--set-json", f"{key}={json.dumps(value)}")]
    found = charts.run("helm", "template", "42", CHART, "--namespace", "123", *told)
    objects = [document.content for document in read(found, str(CHART))]
    assert {obj["metadata"]["namespace"] for obj in objects if "namespace" in obj["metadata"]} == {"123", "true"}
    assert "4090" in {obj["metadata"]["name"] for obj in objects}
    assert all(isinstance(text, str) for obj in objects for text in texts_of(obj)), "a number where a name should be"
    pod = charts.only(objects, "Deployment")["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("123", "123")


def texts_of(obj: dict) -> list[Any]:
    """What Kubernetes takes as text alone: names, labels, and those of subjects."""
    meta = obj["metadata"]
    subjects = [text for subject in obj.get("subjects", ()) for text in subject.values()]
    return [meta["name"], *meta.get("labels", {}).values(), *subjects]


def test_helm_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in charts.run("helm", "lint", "--strict", CHART)


def test_every_variable_that_the_deployment_sets_is_a_setting() -> None:
    deployment = charts.only(charts.render(), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    known = {PREFIX + one.name.upper() for one in fields(Settings)}
    assert {one["name"] for one in container["env"]} <= known


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PrometheusRule", "ConfigMap"])
def test_monitoring_comes_on_request(kind: str) -> None:
    asked = {"ServiceMonitor": "serviceMonitor", "PrometheusRule": "prometheusRule", "ConfigMap": "grafanaDashboard"}
    found = charts.only(charts.render("home", "--set", f"{asked[kind]}.enabled=true"), kind)
    assert found["metadata"]["namespace"] == "home"
    assert kind not in {obj["kind"] for obj in charts.render("home")}


@pytest.mark.skipif(shutil.which("go") is None, reason="Go fetches the CRDs of the Prometheus operator")
def test_the_monitors_are_what_the_prometheus_operator_takes(kube: Kube, namespace: str) -> None:
    crds = programs.source("prometheus-operator") / "example" / "prometheus-operator-crd"
    for plural in ("servicemonitors", "prometheusrules"):
        for crd in kube.apply(crds / f"monitoring.coreos.com_{plural}.yaml"):
            kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
    asked = [word for name in ("serviceMonitor", "prometheusRule") for word in ("--set", f"{name}.enabled=true")]
    for kind in ("ServiceMonitor", "PrometheusRule"):
        found = charts.only(charts.render(namespace, *asked), kind)
        (taken,) = kube.apply(found, namespace)
        assert taken["spec"] == found["spec"], "something of it was dropped or defaulted"


def test_the_text_of_the_crds_is_that_of_the_project_but_for_the_annotation_that_keeps_them() -> None:
    rendered = {obj["metadata"]["name"]: obj for obj in charts.render() if obj["kind"] == "CustomResourceDefinition"}
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        (crd,) = documents(path)
        kept = rendered.pop(crd["metadata"]["name"])
        assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert kept == crd
    assert rendered == {}


def test_the_bundle_is_what_the_chart_says() -> None:
    generate = runpy.run_path(str(BUNDLE.with_name("generate.py")))["bundle"]
    assert BUNDLE.read_text() == generate(charts.render()), "the chart has changed since: make chart"


def test_the_kustomize_base_is_the_bundle() -> None:
    rendered = documents(charts.run("kubectl", "kustomize", CHECKOUT / "charts" / "kustomize"))

    def by_name(objects):
        return {(obj["kind"], obj["metadata"]["name"]): obj.get("spec") or obj.get("rules") for obj in objects}

    assert by_name(rendered) == by_name(documents(BUNDLE))


LOST = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20}
    for taint in ("not-ready", "unreachable")
]


@pytest.mark.parametrize(
    ("own", "others"),
    [
        pytest.param([], LOST, id="none"),
        pytest.param([{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}], LOST, id="another-taint"),
        pytest.param([{**LOST[1], "tolerationSeconds": 60}], LOST[:1], id="the-taint"),
        pytest.param([{"key": LOST[1]["key"], "effect": "NoSchedule"}], LOST, id="another-effect"),
        pytest.param([{"operator": "Exists"}], [], id="every-taint"),
    ],
)
def test_the_operator_leaves_a_lost_node_soon_unless_the_values_say_when(own: list, others: list) -> None:
    rendered = charts.only(charts.render("home", "--set-json", f"tolerations={json.dumps(own)}"), "Deployment")
    assert rendered["spec"]["template"]["spec"]["tolerations"] == own + others


# With a cluster


def test_the_bundle_is_applied_by_kubectl_alone_and_leaves_no_difference(kube: Kube, helm: Helm) -> None:
    bundled = ("--filename", BUNDLE)
    assert "deployment.apps/trainwright created" in charts.run("kubectl", "apply", *bundled, kubeconfig=kube.kubeconfig)
    try:
        settle(kube, "trainwright-system")
        assert charts.run("kubectl", "diff", *bundled, kubeconfig=kube.kubeconfig) == ""
    finally:
        # Not waited for as a whole: a namespace that ends together with the CRDs is retried for minutes.
        charts.run("kubectl", "delete", "--wait=false", *bundled, kubeconfig=kube.kubeconfig)
        for name in ("trainingjobs.trainwright.dev", "acceleratorpools.trainwright.dev"):
            without_crd(kube, name)


def test_replicas_run_on_different_nodes_also_after_a_rollout(kube: Kube, helm: Helm) -> None:
    helm.install()
    first = replicas(kube, helm.namespace)
    helm.upgrade("--set", "logLevel=DEBUG")
    second = replicas(kube, helm.namespace)
    assert not first.keys() & second.keys()
    assert [len(set(nodes.values())) for nodes in (first, second)] == [2, 2]


def settle(kube: Kube, namespace: str) -> None:
    """Wait until nothing changes by itself any more, which a comparison would take for a difference."""
    kube.wait_for("Deployment", "trainwright", namespace, lambda obj: obj["status"].get("readyReplicas") == 2)
    budget = "policy/v1/PodDisruptionBudget"
    kube.wait_for(budget, "trainwright", namespace, lambda obj: obj.get("status", {}).get("currentHealthy") == 2)


def replicas(kube: Kube, namespace: str) -> dict[str, str]:
    """The node of each pod of the operator, once all of them are of the newest revision."""

    def rolled_out(obj: dict) -> bool:
        status = obj["status"]
        counts = {status.get(key) for key in ("replicas", "updatedReplicas", "readyReplicas")}
        return counts == {2} and status["observedGeneration"] == obj["metadata"]["generation"]

    kube.wait_for("Deployment", "trainwright", namespace, rolled_out)
    pods = kube.list("Pod", namespace, "app.kubernetes.io/name=trainwright-operator")
    pods = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    assert [pod["spec"]["tolerations"] for pod in pods] == [LOST, LOST], "no other time of the cluster's"
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}


def test_helm_test_succeeds_when_its_pod_does(kube: Kube, helm: Helm) -> None:
    helm.install()
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(helm.run, "test", charts.RELEASE, "--timeout", "60s")
        kube.wait_for("Pod", "trainwright-test", helm.namespace, lambda pod: pod["status"].get("phase") == "Running")
        kube.patch("Pod", "trainwright-test", {"status": {"phase": "Succeeded"}}, helm.namespace, "status")
        assert "Succeeded" in asked.result()


def test_an_upgrade_brings_the_new_crd_and_keeps_the_jobs(kube: Kube, helm: Helm, tmp_path: Path) -> None:
    helm.install(chart=previous_chart(tmp_path))
    assert "schedulerName" not in stored_fields(kube)
    kube.apply(own_job(), helm.namespace)
    before = kube.get("TrainingJob", "train", helm.namespace)
    helm.upgrade()
    assert "schedulerName" in stored_fields(kube)
    assert kube.get("TrainingJob", "train", helm.namespace) == before


def test_uninstall_leaves_jobs_crds_and_pools_and_installing_again_takes_them_over(kube: Kube, helm: Helm) -> None:
    helm.install(*POOL)
    kube.apply(own_job(), helm.namespace)
    job, pool = kube.get("TrainingJob", "train", helm.namespace), kube.get("AcceleratorPool", "big", None)
    helm.uninstall()
    assert kube.list("Deployment", helm.namespace) == []
    assert kube.get("TrainingJob", "train", helm.namespace)["metadata"]["uid"] == job["metadata"]["uid"]
    helm.install(*POOL)
    assert kube.get("AcceleratorPool", "big", None)["metadata"]["uid"] == pool["metadata"]["uid"]
    assert kube.get("TrainingJob", "train", helm.namespace) == job


@pytest.fixture
def operator(kube: Kube, helm: Helm, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts the operator that a release with these values runs, in the place of the one before."""
    running: list[Operator] = []

    def start(*values: str) -> Operator:
        for former in running:
            former.stop()
        objects = charts.render(helm.namespace, *values)
        own = {"OPERATOR_NAMESPACE": helm.namespace, "PROGRESS_PORT": "0", "NAMESPACES": helm.namespace}
        running[:] = [
            Operator(kube, helm.namespace, tmp_path, {**charts.settings(objects), **own}).start().wait_leading()
        ]
        return running[0]

    yield start
    for one in running:
        one.stop()


def pods_of(kube: Kube, namespace: str, attempt: int) -> dict[str, str]:
    """The image of each pod of an attempt, by the pod's uid."""
    pods = kube.list("Pod", namespace, f"trainwright.dev/attempt={attempt}")
    return {pod["metadata"]["uid"]: pod["spec"]["containers"][0]["image"] for pod in pods}


def test_an_upgrade_that_changes_the_pods_of_jobs_counts_from_the_next_attempt(kube, helm, operator) -> None:
    old, new = ("--set", "trainerImage=example.com/trainer:1"), ("--set", "trainerImage=example.com/trainer:2")
    helm.install(*old)
    operator(*old)
    kube.apply(job(run_for=FOREVER).manifest(), helm.namespace)
    running = state(kube, helm.namespace, "Running")
    before = pods_of(kube, helm.namespace, 1)
    assert list(before.values()) == ["example.com/trainer:1"] * 2
    helm.upgrade(*new)
    upgraded = operator(*new)
    kube.apply(job("second", run_for=FOREVER).manifest(), helm.namespace)
    state(kube, helm.namespace, "Running", "second")
    first = kube.get("TrainingJob", "train", helm.namespace)
    assert first["status"] == running["status"], "it was not touched"
    assert before.items() <= pods_of(kube, helm.namespace, 1).items(), "it was not restarted"
    assert upgraded.requests()["PATCH"] == 2, "of the second job alone"
    (victim,) = kube.list("Pod", helm.namespace, "trainwright.dev/job=train,batch.kubernetes.io/job-completion-index=1")
    kube.delete("Pod", victim["metadata"]["name"], helm.namespace)
    kube.wait_for("Job", "train-0-2", helm.namespace)
    state(kube, helm.namespace, "Running")
    assert list(pods_of(kube, helm.namespace, 2).values()) == ["example.com/trainer:2"] * 2


def test_jobs_train_on_while_nothing_is_installed_and_are_picked_up_unharmed(kube, helm, operator) -> None:
    helm.install()
    running = operator()
    kube.apply(job("ends", run_for=FOREVER).manifest(), helm.namespace)
    kube.apply(job("stays", run_for=FOREVER).manifest(), helm.namespace)
    state(kube, helm.namespace, "Running", "ends")
    before = state(kube, helm.namespace, "Running", "stays")
    pods = pods_of(kube, helm.namespace, 1)
    running.stop()
    kube.apply(certificate("eA=="), helm.namespace)
    helm.uninstall()
    finish(kube, helm.namespace, "ends")
    kube.wait_for("Job", "ends-0-1", helm.namespace, lambda obj: obj["status"].get("succeeded") == 2)
    assert kube.get("TrainingJob", "ends", helm.namespace)["status"]["state"] == "Running", "nobody was there to see it"
    helm.install()
    secret = kube.get("Secret", "trainwright-progress-tls", helm.namespace)
    assert secret["data"] == {"ca.crt": "eA=="}, "pods at work trust this authority and no other"
    again = operator()
    state(kube, helm.namespace, "Succeeded", "ends")
    assert pods_of(kube, helm.namespace, 1) == pods
    assert kube.get("TrainingJob", "stays", helm.namespace) == before
    assert again.requests()["PATCH"] == 1, "the success of the one that ended"


def test_pools_come_with_the_first_install_and_change_in_place(kube: Kube, helm: Helm) -> None:
    notes = helm.install(*POOL)
    assert "kubectl get acceleratorpools" in notes
    made = kube.get("AcceleratorPool", "big", None)
    assert made["metadata"]["annotations"]["trainwright.dev/is-default-pool"] == "true"
    helm.upgrade("--set", "pools.big.spec.vendor=cpu", "--set", "pools.big.spec.perNode=4")
    changed = kube.get("AcceleratorPool", "big", None)
    assert changed["spec"] == {"vendor": "cpu", "perNode": 4}
    assert changed["metadata"]["uid"] == made["metadata"]["uid"], "it was never gone"
    assert "trainwright.dev/is-default-pool" not in changed["metadata"]["annotations"]


def test_an_upgrade_leaves_the_certificate_alone(kube: Kube, helm: Helm) -> None:
    helm.install()
    kube.apply(certificate("eA=="), helm.namespace)
    helm.upgrade("--set", "logLevel=DEBUG")
    assert kube.get("Secret", "trainwright-progress-tls", helm.namespace)["data"] == {"ca.crt": "eA=="}


def certificate(authority: str) -> dict:
    """The Secret of the progress endpoint, which an operator would make."""
    metadata = {"name": "trainwright-progress-tls"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"ca.crt": authority}}


@pytest.mark.parametrize(
    ("role", "may"), [("view", {"get", "list"}), ("edit", {"get", "list", "create", "patch", "delete"})]
)
def test_a_role_allows_its_verbs_and_no_others(kube: Kube, helm: Helm, role: str, may: set[str]) -> None:
    helm.install()
    who = {"kind": "User", "name": "ada", "apiGroup": "rbac.authorization.k8s.io"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "ada"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [who],
    }
    kube.apply(binding, helm.namespace)
    kube.wait_for("ClusterRole", role, None, lambda obj: "trainwright.dev" in str(obj["rules"]), 20)
    asked = ("get", "list", "create", "patch", "delete")
    assert {verb for verb in asked if allowed(kube, verb, helm.namespace)} == may


def allowed(kube: Kube, verb: str, namespace: str) -> bool:
    answer = ("auth", "can-i", verb, "trainingjobs.trainwright.dev", "--as", "ada", "--namespace", namespace)
    try:
        return charts.run("kubectl", *answer, kubeconfig=kube.kubeconfig).strip() == "yes"
    except ProgramError:
        return False


def test_gangs_may_talk_where_everything_is_denied(kube: Kube, helm: Helm) -> None:
    """The API server takes the policy, and it selects the very pods that a job has and the operator's."""
    gangs = ("--set", "networkPolicy.gangs.enabled=true")
    with pytest.raises(ProgramError, match=r"networkPolicy\.gangs\.namespaces: name the namespaces that jobs run in"):
        charts.render(helm.namespace, *gangs)
    helm.install(*gangs, "--set", f"namespaces={{{helm.namespace}}}")
    policy = kube.get("networking.k8s.io/v1/NetworkPolicy", "trainwright-gangs", helm.namespace)["spec"]
    (expression,) = policy["podSelector"]["matchExpressions"]
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}], "no port is left out"
    jobs = [child for child in plan_of(make_job().nodes(2)) if child["kind"] == "Job"]
    assert expression["key"] in jobs[0]["spec"]["template"]["metadata"]["labels"]
    (to,) = policy["egress"][2]["to"]
    (deployment,) = kube.list("Deployment", helm.namespace)
    assert to["podSelector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert to["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": helm.namespace}


def plan_of(builder) -> tuple:
    job = builder.build()
    return children(job, place(job, BUILTIN["cpu"]), 1)
