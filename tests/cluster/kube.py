"""A small client for tests: plain dicts in and out, waits with a deadline that say what they last saw.

A kind is named as in a manifest, ``Job``; kinds of other API groups that are not in ``API_VERSIONS`` as
``group/version/Kind``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes import client, config

from cluster.say import ClusterError

Object = dict[str, Any]

API_VERSIONS = {
    "Job": "batch/v1",
    "Lease": "coordination.k8s.io/v1",
    "Deployment": "apps/v1",
    "DaemonSet": "apps/v1",
    "StorageClass": "storage.k8s.io/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "PodGroup": "scheduling.k8s.io/v1beta1",
    "TrainingJob": "trainwright.dev/v1alpha1",
    "AcceleratorPool": "trainwright.dev/v1alpha1",
    **dict.fromkeys(
        (
            *("Workload", "LocalQueue", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass", "Topology"),
            *("AdmissionCheck", "MultiKueueCluster", "MultiKueueConfig"),
        ),
        "kueue.x-k8s.io/v1beta2",
    ),
}
FIELD_MANAGER = "tests"
POLL_SECONDS = 0.1
POOL_SIZE = 16
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


class ApiError(Exception):
    """The API server's refusal: ``code`` is the HTTP status, ``status`` the whole answer, the text its message."""

    def __init__(self, code: int, status: Object) -> None:
        super().__init__(status.get("message") or f"HTTP {code}")
        self.code, self.status = code, status


class WaitError(ClusterError, AssertionError):
    """A deadline passed; says for what, for how long, and what was last seen."""


class Kube:
    """A client for the cluster of a kubeconfig; safe to use from several threads at once."""

    def __init__(self, kubeconfig: Path | str) -> None:
        self.kubeconfig = Path(kubeconfig)
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    @cached_property
    def _configuration(self) -> client.Configuration:
        if not self.kubeconfig.exists():
            raise ClusterError(f"there is no kubeconfig {self.kubeconfig}: the cluster is not up")
        configuration = client.Configuration()
        config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)
        return configuration

    @cached_property
    def _http(self) -> urllib3.PoolManager:
        c = self._configuration
        return urllib3.PoolManager(
            maxsize=POOL_SIZE, block=True, cert_file=c.cert_file, key_file=c.key_file, ca_certs=c.ssl_ca_cert
        )

    def request(
        self, method: str, path: str, body: Object | None = None, content: str = "application/json", **query: str
    ) -> Any:
        """One request, never repeated; the answer's JSON. Raises :class:`ApiError`; urllib3's own without an answer."""
        return _json(self._answer(method, path, body, content, query))

    def _answer(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> bytes:
        token = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        answer = self._http.request(
            method,
            f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else ""),
            body=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": content, "Accept": "application/json"}
            | ({"Authorization": token} if token else {}),
            retries=False,
            timeout=30,
        )
        if answer.status >= 400:
            said = _json(answer.data)
            raise ApiError(answer.status, said if isinstance(said, dict) else {"message": said.strip()})
        return answer.data

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            return self.request("GET", "/readyz") is not None
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def path(
        self, kind: str, namespace: str | None = "default", name: str | None = None, sub: str | None = None
    ) -> str:
        """The URL path of an object or its subresource, or of the collection; the server is asked for the plural."""
        version, kind = _split(kind)
        plural, namespaced = self._resource(version, kind)
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        scope = f"/namespaces/{namespace}" if namespaced and namespace else ""
        return root + scope + "".join(f"/{part}" for part in (plural, name, sub) if part)

    def create(self, obj: Object, namespace: str | None = None, **query: str) -> Object:
        """POST. ``dryRun="All"`` checks only."""
        return self.request("POST", self._path_of(obj, namespace, named=False), obj, **query)

    def apply(self, what: Object | str | Path, namespace: str | None = None, **query: str) -> list[Object]:
        """Server-side apply of an object, or of every document of a YAML text or file, with strict field validation."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"} | query
        return [
            self.request("PATCH", self._path_of(obj, namespace), obj, "application/apply-patch+yaml", **query)
            for obj in documents(what)
        ]

    def get(self, kind: str, name: str, namespace: str | None = "default") -> Object:
        """One object; :class:`ApiError` with code 404 when there is none."""
        return self.request("GET", self.path(kind, namespace, name))

    def list(self, kind: str, namespace: str | None = None, labels: str = "") -> list[Object]:
        """All of a kind, of one namespace or of all, narrowed by a label selector."""
        return self.request("GET", self.path(kind, namespace), **({"labelSelector": labels} if labels else {}))["items"]

    def patch(
        self, kind: str, name: str, body: Object, namespace: str | None = "default", sub: str | None = None
    ) -> Object:
        """A JSON merge patch, of the object or of its subresource (``sub="status"``)."""
        return self.request("PATCH", self.path(kind, namespace, name, sub), body, "application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str | None = "default", **options: Any) -> None:
        """Delete, in the background as kubectl does; nothing happens when there is none."""
        try:
            self.request("DELETE", self.path(kind, namespace, name), {"propagationPolicy": "Background", **options})
        except ApiError as error:
            if error.code != 404:
                raise

    def evict(self, pod: str, namespace: str = "default") -> None:
        """Evict a pod as `kubectl drain` does: it gets the condition DisruptionTarget."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        self.request("POST", self.path("Pod", namespace, pod, "eviction"), eviction)

    def logs(self, pod: str, namespace: str = "default", **query: str) -> str:
        """What the pod's container has printed; text, also where it looks like JSON."""
        return self._answer("GET", self.path("Pod", namespace, pod, "log"), query=query).decode(errors="replace")

    def namespace(self, name: str, restricted: bool = True) -> str:
        """A new namespace, ready for pods; it enforces restricted Pod Security unless told otherwise."""
        labels = RESTRICTED if restricted else {}
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        self.wait_for("ServiceAccount", "default", name, seconds=30)
        return name

    def wait_for(
        self,
        kind: str,
        name: str,
        namespace: str | None = "default",
        until: Callable[[Object], object] = bool,
        seconds: float = 60,
        what: str = "to exist",
    ) -> Object:
        """Wait until ``until(object)`` is true and return the object. An API server that is away is waited for too."""
        last = "nothing"
        for _ in _tries(seconds):
            try:
                obj = self.get(kind, name, namespace)
                if until(obj):
                    return obj
                last = summary(obj)
            except (ApiError, urllib3.exceptions.HTTPError) as error:
                last = str(error)
        raise WaitError(f"waited {seconds:g} s for {kind} {name} {what}; last saw: {last}")

    def wait_condition(
        self, kind: str, name: str, condition: str, namespace: str | None = "default", seconds: float = 60
    ) -> Object:
        """Wait until the condition is True."""
        return self.wait_for(
            kind, name, namespace, lambda obj: condition_of(obj, condition) == "True", seconds, f"to be {condition}"
        )

    def wait_gone(self, kind: str, name: str, namespace: str | None = "default", seconds: float = 60) -> None:
        """Wait until there is no such object."""
        last = "nothing"
        for _ in _tries(seconds):
            try:
                last = summary(self.get(kind, name, namespace))
            except ApiError as error:
                if error.code == 404:
                    return
                last = str(error)
        raise WaitError(f"waited {seconds:g} s for {kind} {name} to be gone; last saw: {last}")

    def wait_list(
        self,
        kind: str,
        namespace: str | None,
        until: Callable[[list[Object]], object],
        seconds: float = 60,
        labels: str = "",
        what: str = "to be as wanted",
    ) -> list[Object]:
        """Wait until ``until(objects)`` is true of all that match, and return them."""
        found: list[Object] = []
        for _ in _tries(seconds):
            found = self.list(kind, namespace, labels)
            if until(found):
                return found
        seen = "; ".join(map(summary, found)) or "none"
        raise WaitError(f"waited {seconds:g} s for {kind}s {labels} {what}; last saw: {seen}")

    def _path_of(self, obj: Object, namespace: str | None, named: bool = True) -> str:
        meta = obj["metadata"]
        where = namespace or meta.get("namespace") or "default"
        return self.path(f"{obj['apiVersion']}/{obj['kind']}", where, meta["name"] if named else None)

    def _resource(self, version: str, kind: str) -> tuple[str, bool]:
        if (version, kind) not in self._plurals:
            found = self.request("GET", f"/api/{version}" if "/" not in version else f"/apis/{version}")["resources"]
            self._plurals |= {(version, r["kind"]): (r["name"], r["namespaced"]) for r in found if "/" not in r["name"]}
        if (version, kind) not in self._plurals:
            raise ClusterError(f"the API server knows no {kind} in {version}")
        return self._plurals[version, kind]


def documents(what: Object | str | Path) -> list[Object]:
    """The objects of a manifest."""
    if isinstance(what, dict):
        return [what]
    text = what.read_text() if isinstance(what, Path) else what
    return [obj for obj in yaml.safe_load_all(text) if obj]


def condition_of(obj: Object, kind: str) -> str | None:
    """The status of a condition: "True", "False", "Unknown", or None when it is not there."""
    conditions = obj.get("status", {}).get("conditions") or []
    return next((c["status"] for c in conditions if c["type"] == kind), None)


def summary(obj: Object) -> str:
    """What a person would want to know of an object's state, in a line."""
    status = obj.get("status", {})
    conditions = [f"{c['type']}={c['status']}({c.get('reason', '')})" for c in status.get("conditions") or []]
    counts = [
        f"{key}={status[key]}" for key in ("phase", "state", "active", "ready", "succeeded", "failed") if key in status
    ]
    waiting = [
        f"{container['name']}:{state.get('reason') or name}"
        for container in status.get("containerStatuses", [])
        for name, state in container.get("state", {}).items()
    ]
    return f"{obj['metadata']['name']} {' '.join([*counts, *conditions, *waiting]) or '(no status)'}"


def _split(kind: str) -> tuple[str, str]:
    version, _, name = kind.rpartition("/")
    return version or API_VERSIONS.get(name, "v1"), name


def _tries(seconds: float) -> Iterator[None]:
    """Try at once, then again and again until the time is over; at least twice."""
    deadline = time.monotonic() + seconds
    yield
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        yield


def _json(data: bytes) -> Any:
    """JSON where it is JSON: /readyz and logs are plain text."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
