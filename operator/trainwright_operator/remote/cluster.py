"""The cluster of a kubeconfig, found as kubectl finds it, and asked in plain dicts.

The official client reads the kubeconfig and keeps credentials fresh (tokens, certificates, exec plugins); the requests
are few and simple, and its models, which cost half a second to import, are not needed for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml

from trainwright import extras
from trainwright_operator.remote.errors import IN_BETWEEN, RemoteError, Silent, Unreachable, refusal
from trainwright_operator.remote.kubeconfig import Headers, configure

if TYPE_CHECKING:
    import urllib3

Object = dict[str, Any]
ANSWER_SECONDS, STREAM_SECONDS = 30.0, 330.0


@dataclass
class Cluster:
    """Requests to one API server. ``namespace`` is the one that is meant when none is named.

    ``headers`` are sent with every request, besides the credentials.
    """

    configuration: Any
    namespace: str
    http: urllib3.PoolManager
    headers: Headers = ()

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
        headers = urllib3.HTTPHeaderDict({"Accept": "application/json, text/plain"})
        headers.extend({"Authorization": token.strip()} if token else {})
        headers.extend(self.headers)
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
        raise RemoteError(extras.line("kubernetes")) from None
    configuration = Configuration()
    try:
        access = configure(configuration, kubeconfig, context)
        http = _http(configuration)
    except ConfigException as error:
        raise RemoteError(f"kubeconfig{f', context {context!r}' if context else ''}: {_line(error)}") from None
    except (OSError, yaml.YAMLError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise RemoteError(f"the kubeconfig cannot be read: {_line(error)}") from None
    return Cluster(configuration, namespace or access.namespace or "default", http, access.headers)


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
        return _proxied(configuration, options)
    return urllib3.PoolManager(**options)


def _proxied(configuration: Any, options: dict[str, Any]) -> urllib3.PoolManager:
    import urllib3

    try:
        return urllib3.ProxyManager(configuration.proxy, proxy_headers=configuration.proxy_headers, **options)
    except urllib3.exceptions.HTTPError as error:  # without the proxy, whose URL may hold a password
        raise RemoteError(f"the proxy on the way to {configuration.host} is of no use: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


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
