"""What only the cluster can know: told in a condition and by ``kubectl get``, with the mend; nobody loops meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.kube import Kube
from integration import charts
from integration.jobs import job
from integration.operators import Operator
from integration.webhook import refusing

pytestmark = pytest.mark.usefixtures("crds")

Object = dict[str, Any]
QUIET_SECONDS = 4
MOST_REQUESTS = 2
"""In that time: a look at the Events of what waits, and one more for luck. A hot loop makes hundreds."""


@dataclass(frozen=True)
class Case:
    """``spec`` are changes by path; ``before`` is applied first; ``webhook`` is what is refused, and in which words."""

    reason: str
    words: str
    fix: str
    spec: tuple[tuple[str, Any], ...] = ()
    before: Object | None = None
    webhook: tuple[str, str | None] | None = None


def quota(**hard: str) -> Object:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": hard}}


CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "runs"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "none",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}
ON_CLAIM = ("spec.output", {"persistentVolumeClaim": {"claimName": "runs"}})

CASES = {
    "no such pool": Case(
        "PoolNotFound", "accelerator pool 'h100' does not exist", "`kubectl get acceleratorpools` lists those that do",
        (("spec.accelerator.pool", "h100"),),
    ),
    "no such claim": Case(
        "Unschedulable", 'persistentvolumeclaim "runs" not found', "create the PersistentVolumeClaim runs", (ON_CLAIM,)
    ),
    "a claim for one node": Case(
        "OutputNotShared", "PersistentVolumeClaim runs is ReadWriteOnce, and pods on several nodes write to it",
        "make a claim of that name that is ReadWriteMany", (ON_CLAIM,), CLAIM,
    ),
    "a quota of pods": Case(
        "PodsRefused", "exceeded quota: small", "have the quota small raised", before=quota(pods="0")
    ),
    "a quota of Jobs": Case(
        "Refused", "exceeded quota: small", "have the quota small raised", before=quota(**{"count/jobs.batch": "0"})
    ),
    "a quota that wants limits": Case(
        "PodsRefused", "must specify limits.cpu", "set limits.cpu in podTemplate.resources of a new run",
        before=quota(**{"limits.cpu": "4"}),
    ),
    "a webhook that refuses the Job": Case(
        "Refused", 'admission webhook "budget.example.com" denied the request: no budget is left',
        "ask who runs budget.example.com", webhook=("batch/jobs", "no budget is left"),
    ),
    "a webhook that refuses the pods": Case(
        "PodsRefused", 'admission webhook "budget.example.com" denied the request: no budget is left',
        "ask who runs budget.example.com", webhook=("pods", "no budget is left"),
    ),
    "a webhook that does not answer": Case(
        "Refused", 'failed calling webhook "budget.example.com"', "whoever runs it must fix it",
        webhook=("batch/jobs", None),
    ),
    "no room": Case(
        "Unschedulable", "Insufficient cpu", "ask for less cpu",
        (("spec.podTemplate.resources", {"requests": {"cpu": "9999"}}),),
    ),
    "no node with such a label": Case(
        "Unschedulable", "node affinity/selector", "no node with room carries the labels asked for",
        (("spec.podTemplate.nodeSelector", {"zone": "moon"}),),
    ),
    "no such service account": Case(
        "PodsRefused", 'serviceaccount "reader" not found', "create the ServiceAccount reader in this namespace",
        (("spec.podTemplate.serviceAccountName", "reader"),),
    ),
    "no such priority": Case(
        "PodsRefused", "no PriorityClass with name urgent was found", "create the PriorityClass urgent",
        (("spec.podTemplate.priorityClassName", "urgent"),),
    ),
    "what Pod Security forbids": Case(
        "PodsRefused", 'violates PodSecurity "restricted:latest"', "leave out what restricted:latest forbids",
        (("spec.output", {"hostPath": {"path": "/runs"}}),),
    ),
}  # fmt: skip


@pytest.fixture
def operator(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """Without an election, so that every request is one of its work."""
    running = Operator(kube, namespace, tmp_path, {"LEADER_ELECTION": "false"}).start().wait_leading()
    yield running
    running.kill()


@pytest.mark.parametrize("name", CASES)
def test_the_status_says_what_holds_a_job_up(
    kube: Kube, namespace: str, operator: Operator, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    with _refusal(kube, namespace, case, tmp_path):
        _prepare(kube, namespace, case)
        wanted = job()
        for path, value in case.spec:
            wanted = wanted.with_(path, value)
        kube.apply(wanted.manifest(), namespace)
        held = kube.wait_for("TrainingJob", "train", namespace, lambda obj: case.words in _why(obj))
        message = _message(held)
        assert case.words in message
        assert case.fix in message
        assert held["status"]["display"]["state"].endswith(f"({case.reason})")
        shown = charts.run("kubectl", "get", "tj", "-n", namespace, "-o", "wide", kubeconfig=kube.kubeconfig)
        assert f"({case.reason})" in shown
        assert case.fix in shown
        before = operator.requests()
        time.sleep(QUIET_SECONDS)
        assert (operator.requests() - before).total() <= MOST_REQUESTS
    assert "Traceback" not in operator.log.read_text()


def _refusal(kube: Kube, namespace: str, case: Case, folder: Path) -> AbstractContextManager[None]:
    return refusing(kube, namespace, *case.webhook, folder) if case.webhook else nullcontext()


def _prepare(kube: Kube, namespace: str, case: Case) -> None:
    if case.before is None:
        return
    (made,) = kube.apply(case.before, namespace)
    if made["kind"] == "ResourceQuota":
        kube.wait_for("ResourceQuota", "small", namespace, lambda obj: obj.get("status", {}).get("hard"))


def _why(obj: Object) -> str:
    return (obj.get("status", {}).get("display") or {}).get("why", "")


def _message(obj: Object) -> str:
    """Of the condition that people and tools look at first."""
    holding = {one["type"]: one["message"] for one in obj["status"]["conditions"] if one["status"] == "True"}
    return next(holding[kind] for kind in ("Stalled", "Queued", "Reconciling") if kind in holding)
