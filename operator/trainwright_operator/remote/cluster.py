"""The cluster of a kubeconfig, found as kubectl finds it, and asked in plain dicts.

The official client reads the kubeconfig and keeps credentials fresh (tokens, certificates, exec plugins); the requests
are few and simple, and its models, which cost half a second to import, are not needed for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml

from trainwright_operator.remote.errors import IN_BETWEEN, RemoteError, Silent, Unreachable, refusal

if TYPE_CHECKING:
    import urllib3

Object = dict[str, Any]
ANSWER_SECONDS, STREAM_SECONDS = 30.0, 330.0
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SYSTEM = "the kubernetes client is not installed; pip install 'trainwright[client]'"


@dataclass
class Cluster:
    """Requests to one API server. ``namespace`` is the one that is meant when none is named."""

    configuration: Any
    namespace: str
    http: urllib3.PoolManager

    def get(self, path: str, **query: str) -> Object:
        """The answer's JSON; :class:`RemoteError` for any other answer or none."""
        with self._request(path, query, ANSWER_SECONDS) as answer:
            return self._object(self._whole(answer))

    def items(self, path: str, **query: str) -> list[Object]:
        found: list[Object] = self.get(path, **query).get("items") or []
        return found

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """The lines of an answer as they come, without their ends; ends when the server ends it."""
        import urllib3

        with self._request(path, query, STREAM_SECONDS) as answer:
            rest = b""
            try:
                for chunk in answer.stream():
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode(errors="replace") for line in whole)
            except urllib3.exceptions.ReadTimeoutError:
                raise Silent(f"{self.configuration.host}: nothing came for {STREAM_SECONDS:.0f} s") from None
            except urllib3.exceptions.HTTPError as error:
                raise self._cut_off(error) from None
            if rest:
                yield rest.decode(errors="replace")

    def _refusal(self, answer: urllib3.BaseHTTPResponse) -> RemoteError:
        try:
            return refusal(answer.status, _message(self._whole(answer)))
        except Unreachable:  # the code tells enough
            return refusal(answer.status, "")

    def _object(self, body: bytes) -> Object:
        try:
            read = json.loads(body)
        except ValueError:
            read = None
        if isinstance(read, dict) and not read.keys().isdisjoint(("metadata", "items")):
            return read
        raise Unreachable(f"{self.configuration.host} does not answer as an API server does; {IN_BETWEEN}")

    def _whole(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        import urllib3

        try:
            return answer.read()
        except urllib3.exceptions.HTTPError as error:
            raise self._cut_off(error) from None

    def _cut_off(self, error: Exception) -> Unreachable:
        return Unreachable(f"{self.configuration.host}: the answer was cut off: {_reason(error)}")

    def _request(self, path: str, query: dict[str, str], patience: float) -> urllib3.BaseHTTPResponse:
        import urllib3

        url = self.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        token = self.configuration.get_api_key_with_prefix("BearerToken", "authorization")
        headers = {"Accept": "application/json, text/plain", **({"Authorization": token} if token else {})}
        timeout = urllib3.Timeout(connect=5, read=patience)
        try:
            answer = self.http.request("GET", url, headers=headers, timeout=timeout, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"cannot reach {self.configuration.host}: {_reason(error)}") from None
        if answer.status >= 300:
            with answer:
                raise self._refusal(answer)
        return answer


def connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """By ``KUBECONFIG``, ``--kubeconfig`` or ``~/.kube/config``; in a pod with none of them, its service account."""
    try:
        from kubernetes.client.configuration import Configuration
        from kubernetes.config.config_exception import ConfigException
    except ImportError:
        raise RemoteError(SYSTEM) from None
    configuration = Configuration()
    try:
        own = _configure(configuration, kubeconfig, context)
    except ConfigException as error:
        raise RemoteError(_words(str(error), context)) from None
    except (OSError, yaml.YAMLError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise RemoteError(f"the kubeconfig cannot be read: {' '.join(str(error).split())}") from None
    return Cluster(configuration, namespace or own or "default", _http(configuration))


def _configure(configuration: Any, kubeconfig: str | None, context: str | None) -> str | None:
    """Fill the configuration in; gives the namespace of the context."""
    from kubernetes import config as kubeconfigs

    official: Any = kubeconfigs  # it has no types
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(Path(path).exists() for path in paths.split(os.pathsep) if path):
        if kubeconfig or not (SERVICE_ACCOUNT / "token").exists():
            raise RemoteError(f"no cluster: there is no kubeconfig at {paths}; set KUBECONFIG or --kubeconfig")
        official.load_incluster_config(client_configuration=configuration)
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    contexts, current = official.list_kube_config_contexts(paths)
    if context and context not in (names := [one["name"] for one in contexts]):
        raise RemoteError(f"no context named {context!r} in {paths}; there are {', '.join(names)}")
    official.load_kube_config(paths, context, configuration, persist_config=False)
    chosen = next((one for one in contexts if one["name"] == context), current)
    return chosen["context"].get("namespace") or None


def _http(configuration: Any) -> urllib3.PoolManager:
    import urllib3

    options: dict[str, Any] = {
        "retries": False,
        "maxsize": 16,
        "ca_certs": configuration.ssl_ca_cert,
        "cert_file": configuration.cert_file,
        "key_file": configuration.key_file,
        "cert_reqs": "CERT_REQUIRED" if configuration.verify_ssl else "CERT_NONE",
    }
    if configuration.tls_server_name:
        options |= {"assert_hostname": configuration.tls_server_name, "server_hostname": configuration.tls_server_name}
    if not configuration.verify_ssl:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    if configuration.proxy:
        return urllib3.ProxyManager(configuration.proxy, **options)
    return urllib3.PoolManager(**options)


def _words(error: str, context: str | None) -> str:
    if "current-context" in error:
        return "the kubeconfig has no current context; choose one: kubectl config use-context NAME, or --context NAME"
    return f"kubeconfig{f', context {context!r}' if context else ''}: {' '.join(error.split())}"


def _message(body: bytes) -> str:
    """What a Status object says, or the bare text of a proxy."""
    try:
        return str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        return body.decode(errors="replace")[:300]


def _reason(error: Exception) -> str:
    """The innermost words: `Connection refused` of three wrapped exceptions."""
    cause: BaseException = error
    while inner := (cause.__cause__ or cause.__context__):
        cause = inner
    return str(getattr(cause, "strerror", None) or cause)
