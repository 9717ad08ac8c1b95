"""Finds TrainingJobs and their pods in a cluster."""

from __future__ import annotations

from urllib.parse import quote

from trainwright.nearest import did_you_mean
from trainwright_operator.api.names import API_VERSION, JOB_KIND, JOB_PLURAL, LABEL_JOB, LABEL_JOB_UID
from trainwright_operator.core.observe import maker_of
from trainwright_operator.remote.cluster import Absent, Cluster, Object, RemoteError

NO_OPERATOR = f"this cluster has no {JOB_KIND} CRD: install the operator first (helm install, see docs/operator.md)"


def jobs_path(namespace: str | None) -> str:
    """The path of all jobs in a namespace, or in all namespaces."""
    return f"/apis/{API_VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{JOB_PLURAL}"


def core_path(namespace: str, *parts: str) -> str:
    return "/".join([f"/api/v1/namespaces/{namespace}", *parts])


def find_job(cluster: Cluster, name: str) -> Object:
    """The job; raises :class:`Absent`, with a suggestion for the name."""
    if not name.strip("."):  # an empty name is the path of all jobs
        raise RemoteError(f"give the name of a {JOB_KIND}")
    try:
        return cluster.get(f"{jobs_path(cluster.namespace)}/{quote(name, safe='')}")
    except Absent:
        raise Absent(_missing(cluster, name)) from None


def find_pods(cluster: Cluster, job: Object) -> list[Object]:
    """The pods of all attempts, without those of a deleted job of the same name or copies with the same labels."""
    meta = job["metadata"]
    selector = f"{LABEL_JOB}={meta['name']},{LABEL_JOB_UID}={meta['uid']}"
    found = cluster.items(core_path(meta["namespace"], "pods"), labelSelector=selector)
    return [pod for pod in found if maker_of(pod)]


def _missing(cluster: Cluster, name: str) -> str:
    """The message for a missing job: a similar name, or another namespace that has it."""
    namespace = cluster.namespace
    try:
        there = [job["metadata"]["name"] for job in cluster.items(jobs_path(namespace))]
    except Absent:
        return NO_OPERATOR
    except RemoteError:
        there = []
    hint = did_you_mean(name, there) or _elsewhere(cluster, name)
    return f"no {JOB_KIND} named {name!r} in namespace {namespace}{hint}"


def _elsewhere(cluster: Cluster, name: str) -> str:
    try:
        found = cluster.items(jobs_path(None), fieldSelector=f"metadata.name={name}")
    except RemoteError:  # not allowed to list all namespaces
        return ""
    places = sorted(job["metadata"]["namespace"] for job in found)
    return f"; there is one in {', '.join(places[:3])} (-n)" if places else ""
