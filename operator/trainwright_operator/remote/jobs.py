"""TrainingJobs of a cluster and what belongs to them, by the labels and fields that the API server selects by."""

from __future__ import annotations

from urllib.parse import quote

from trainwright.nearest import did_you_mean
from trainwright_operator.api.names import API_VERSION, JOB_KIND, JOB_PLURAL, LABEL_JOB, LABEL_JOB_UID
from trainwright_operator.core.observe import maker_of
from trainwright_operator.remote.cluster import Absent, Cluster, Object, RemoteError

NO_OPERATOR = f"this cluster knows no {JOB_KIND}: install the operator first (helm install, see docs/operator.md)"


def jobs_path(namespace: str | None) -> str:
    """The collection in a namespace, or in all of them."""
    return f"/apis/{API_VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{JOB_PLURAL}"


def core_path(namespace: str, *parts: str) -> str:
    return "/".join([f"/api/v1/namespaces/{namespace}", *parts])


def find_job(cluster: Cluster, name: str) -> Object:
    """The job, or :class:`Absent` with the name that was meant."""
    if not name.strip("."):  # the path would be that of all jobs
        raise RemoteError(f"give the name of a {JOB_KIND}")
    try:
        return cluster.get(f"{jobs_path(cluster.namespace)}/{quote(name, safe='')}")
    except Absent:
        raise Absent(_missing(cluster, name)) from None


def find_pods(cluster: Cluster, job: Object) -> list[Object]:
    """Pods of all its attempts, neither those of a former job of the same name nor copies that bear their labels."""
    meta = job["metadata"]
    selector = f"{LABEL_JOB}={meta['name']},{LABEL_JOB_UID}={meta['uid']}"
    found = cluster.items(core_path(meta["namespace"], "pods"), labelSelector=selector)
    return [pod for pod in found if maker_of(pod)]


def _missing(cluster: Cluster, name: str) -> str:
    """Who asks for a job that is not there has mistyped its name, or looks into another namespace."""
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
    except RemoteError:  # who may not look everywhere is simply not told
        return ""
    places = sorted(job["metadata"]["namespace"] for job in found)
    return f"; there is one in {', '.join(places[:3])} (-n)" if places else ""
