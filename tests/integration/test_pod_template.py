"""All that a job may add to its pods, before a real API server: taken as it is, in a restricted namespace."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.simulated import FOREVER
from integration.jobs import job, state

pytestmark = pytest.mark.usefixtures("crds")

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
HOST = "kubernetes.io/hostname"
HAS_A_NAME = {"matchExpressions": [{"key": HOST, "operator": "Exists"}]}
TEMPLATE: dict[str, Any] = {
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    "initContainers": [
        {
            "name": "fetch",
            "command": ["fetch"],
            "args": ["all"],
            "workingDir": "/data",
            "env": [{"name": "A", "value": "1"}],
            "resources": {"requests": {"cpu": "10m"}},
            "volumeMounts": [{"name": "scratch", "mountPath": "/data"}],
        }
    ],
    "sidecars": [
        {
            "name": "sync",
            "image": "example.com/sync:1",
            "imagePullPolicy": "Never",
            "securityContext": {"runAsUser": 7, "runAsGroup": 7, "readOnlyRootFilesystem": True},
            "volumeMounts": [{"name": "trainwright-output", "mountPath": "/output", "readOnly": True}],
            "startupProbe": {"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 9},
        }
    ],
    "affinity": {
        "nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [HAS_A_NAME]},
            PREFERRED: [
                {
                    "weight": 1,
                    "preference": {"matchExpressions": [{"key": "memory", "operator": "Gt", "values": ["40000"]}]},
                }
            ],
        },
        "podAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": {"topologyKey": HOST}}]},
        "podAntiAffinity": {
            REQUIRED: [{"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "noisy"}}, "namespaces": ["a"]}]
        },
    },
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": HOST, "whenUnsatisfiable": "DoNotSchedule", "nodeTaintsPolicy": "Honor"}
    ],
    "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["a.example"], "options": [{"name": "ndots", "value": "2"}]},
}


def within(stated: Any, found: Any) -> bool:
    """Whether all that is stated stands in what was found, beside defaults and the Job controller's own variable."""
    if isinstance(stated, dict):
        return all(within(value, found.get(key)) for key, value in stated.items())
    if isinstance(stated, list):
        return len(stated) <= len(found) and all(map(within, stated, found))
    return bool(stated == found)


def test_a_job_with_sidecars_and_metadata_is_accepted_and_its_pods_run(kube, namespace, operator) -> None:
    made = job(run_for=FOREVER)
    annotations = made.manifest()["spec"]["podTemplate"]
    labels = {"metadata": {"labels": {"team": "nlp"}, "annotations": {"example.com/cost": "7"}}}
    kube.apply(
        made.with_("spec.podTemplate", {**annotations, **TEMPLATE}).with_("spec.jobTemplate", labels).manifest(),
        namespace,
    )
    state(kube, namespace, "Running")
    (attempt,) = kube.list("Job", namespace)
    assert attempt["metadata"]["labels"]["team"] == "nlp"
    assert attempt["metadata"]["annotations"]["example.com/cost"] == "7"
    pods = kube.list("Pod", namespace)
    assert len(pods) == 2, "none was refused by the namespace's restricted Pod Security"
    for pod in pods:
        spec = pod["spec"]
        assert [one["name"] for one in spec["initContainers"]] == ["sync", "fetch"]
        for stated, found in zip(
            [*TEMPLATE["sidecars"], *TEMPLATE["initContainers"]], spec["initContainers"], strict=True
        ):
            assert within(stated, found)
        for field in ("affinity", "topologySpreadConstraints", "dnsConfig"):
            assert within(TEMPLATE[field], spec[field]), field
        own = spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
        assert own.items() <= pod["metadata"]["labels"].items(), "its own pods are counted"


def test_the_hosts_network_is_refused_by_a_pool_and_then_by_the_namespace(kube, namespace, operator) -> None:
    made = job(run_for=FOREVER).with_("spec.podTemplate.hostNetwork", True)
    kube.apply(made.manifest(), namespace)
    held = kube.wait_condition("TrainingJob", "train", "Stalled", namespace)
    assert "spec.podTemplate.hostNetwork: pool 'cpu' does not allow it" in held["status"]["display"]["why"]
    name = f"host-{namespace}"
    pool = {"apiVersion": made.manifest()["apiVersion"], "kind": "AcceleratorPool", "metadata": {"name": name}}
    kube.apply({**pool, "spec": {"vendor": "cpu", "allowHostNetwork": True}})
    try:
        kube.apply(made.named("second").with_("spec.accelerator.pool", name).manifest(), namespace)
        refused = kube.wait_condition("TrainingJob", "second", "Queued", namespace)
        assert "violates PodSecurity" in refused["status"]["display"]["why"]
    finally:
        kube.delete("AcceleratorPool", name, None)
