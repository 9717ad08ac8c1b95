"""Read-only requests to the cluster of a kubeconfig, chosen as kubectl does; objects are plain dicts.

The official client reads the kubeconfig and refreshes credentials (tokens, certificates, exec plugins). Its models take
half a second to import and are not needed for a few simple requests.

This module adds what the official client lacks: --context when the current context is missing or stale, impersonation,
and NO_PROXY. Every error is one line for the user.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import yaml

from trainwright import extras

if TYPE_CHECKING:
    import urllib3

Object = dict[str, Any]
ANSWER_SECONDS, STREAM_SECONDS = 30.0, 330.0


@dataclass
class Cluster:
    """Requests to one API server. ``namespace`` is the default namespace.

    ``headers`` are sent with every request, in addition to the credentials.
    """

    configuration: Any
    namespace: str
    http: urllib3.PoolManager
    headers: Headers = ()

    def get(self, path: str, **query: str) -> Object:
        """The JSON of the response; raises :class:`RemoteError` for any other response or none."""
        with self._request(path, query, ANSWER_SECONDS) as answer:
            return self._object(self._whole(answer))

    def items(self, path: str, **query: str) -> list[Object]:
        found: list[Object] = self.get(path, **query).get("items") or []
        return found

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """The lines of a response as they arrive, without line ends, until the server closes it."""
        import urllib3

        with self._request(path, query, STREAM_SECONDS) as answer:
            rest = b""
            try:
                for chunk in answer.stream():
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode(errors="replace") for line in whole)
            except urllib3.exceptions.ReadTimeoutError:
                raise Silent(f"{self.configuration.host}: no data for {STREAM_SECONDS:.0f} s") from None
            except urllib3.exceptions.HTTPError as error:
                raise self._cut_off(error) from None
            if rest:
                yield rest.decode(errors="replace")

    def _refusal(self, answer: urllib3.BaseHTTPResponse) -> RemoteError:
        try:
            return refusal(answer.status, _message(self._whole(answer)))
        except Unreachable:  # the status code is enough
            return refusal(answer.status, "")

    def _object(self, body: bytes) -> Object:
        try:
            read = json.loads(body)
        except ValueError:
            read = None
        if isinstance(read, dict) and not read.keys().isdisjoint(("metadata", "items")):
            return read
        raise Unreachable(f"{self.configuration.host} does not respond like an API server; {CHECK_PROXY}")

    def _whole(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        import urllib3

        try:
            return answer.read()
        except urllib3.exceptions.HTTPError as error:
            raise self._cut_off(error) from None

    def _cut_off(self, error: Exception) -> Unreachable:
        return Unreachable(f"{self.configuration.host}: the response was cut off: {_reason(error)}")

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
    """Connect by ``KUBECONFIG``, ``--kubeconfig`` or ``~/.kube/config``; else, in a pod, by its service account."""
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
    except urllib3.exceptions.HTTPError as error:  # without the proxy's URL, which may contain a password
        raise RemoteError(f"the proxy for {configuration.host} cannot be used: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _message(body: bytes) -> str:
    """The message of a Status object, or the plain text of a proxy."""
    try:
        return str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        return body.decode(errors="replace")[:300]


def _reason(error: Exception) -> str:
    """The innermost message, such as ``Connection refused`` of three wrapped exceptions."""
    cause: BaseException = error
    while inner := (cause.__cause__ or cause.__context__):
        cause = inner
    return str(getattr(cause, "strerror", None) or cause)


CHECK_PROXY = "check the server in the kubeconfig, and whether there is a proxy or a login page in between"


class RemoteError(Exception):
    """The message says what is wrong and how to fix it."""


class Absent(RemoteError):
    """The object does not exist, or the cluster does not know its kind."""


class Forbidden(RemoteError):
    """The credentials are valid but do not allow this."""


class Expired(RemoteError):
    """The resourceVersion of a watch is too old: list again."""


class Unreachable(RemoteError):
    """No usable response, but a retry may succeed: the API server is starting, failing or overloaded."""


class Silent(Unreachable):
    """A stream had no data for so long that its connection may be dead."""


def refusal(code: int, message: str) -> RemoteError:
    """The error for a response of the API server with an error code."""
    text = " ".join(message.split()) or f"HTTP {code}"
    if code == 401:
        return RemoteError("the cluster does not accept these credentials; log in again, or choose another --context")
    if code == 403:
        return Forbidden(f"{text}; ask for the role `view` in the namespace")
    if code == 404:
        return Absent(text)
    if code == 410:
        return Expired(text)
    if code < 400:
        return Unreachable(f"the response {code} is a redirect; {CHECK_PROXY}")
    answered = f"the API server answered {code}: {text}"
    return Unreachable(answered) if code == 429 or code >= 500 else RemoteError(answered)


Headers = tuple[tuple[str, str], ...]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOOPBACK = "localhost,127.0.0.0/8,::1"
HEADER_BYTES = "!#$&'*+-.^_`|~"
"""Allowed in the name of a header, besides letters and digits, except `%`, which starts an escape."""


@dataclass(frozen=True)
class Access:
    """The namespace and headers of a context."""

    namespace: str | None
    headers: Headers = ()


def configure(configuration: Any, kubeconfig: str | None, context: str | None) -> Access:
    """Fill in ``configuration``."""
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if any(Path(path).exists() for path in paths.split(os.pathsep) if path):
        return _of_files(configuration, paths, context)
    if kubeconfig or not (SERVICE_ACCOUNT / "token").exists():
        raise RemoteError(f"no cluster: there is no kubeconfig at {paths}; set KUBECONFIG or --kubeconfig")
    from kubernetes import config as kubeconfigs

    official: Any = kubeconfigs  # it is untyped
    official.load_incluster_config(client_configuration=configuration)
    _bypass_proxy(configuration)
    return Access((SERVICE_ACCOUNT / "namespace").read_text().strip())


def _of_files(configuration: Any, paths: str, context: str | None) -> Access:
    from kubernetes.config import kube_config

    official: Any = kube_config
    read = official.KubeConfigMerger(paths)
    contexts = _named(read.config, "context")
    name = context or _current(read.config_files.values())
    if name not in contexts:
        there = ", ".join(map(str, contexts)) or "none"
        raise RemoteError(f"no context named {name!r} in {paths}; there are {there}")
    official.KubeConfigLoader(read.config, name, config_base_path=None).load_and_set(configuration)
    chosen = contexts[name]
    if not _named(read.config, "cluster")[chosen["cluster"]].get("proxy-url"):
        _bypass_proxy(configuration)
    user = _named(read.config, "user").get(chosen.get("user", ""), {})
    return Access(chosen.get("namespace") or None, impersonation(user))


def _named(config: Any, kind: str) -> dict[str, Mapping[str, Any]]:
    """The contexts, clusters or users of all files, by name."""
    return {one.value["name"]: one.value.get(kind) or {} for one in config.value[f"{kind}s"]}


def _current(files: Iterable[Mapping[str, Any]]) -> str:
    """The current context of the first file that has one; the official client takes the last file's."""
    found = next((name for file in files if (name := file.get("current-context"))), None)
    if found is None:
        raise RemoteError(
            "the kubeconfig has no current context; choose one: kubectl config use-context NAME, or --context NAME"
        )
    return str(found)


def _bypass_proxy(configuration: Any) -> None:
    """Ignore the proxy of the environment for hosts in NO_PROXY and for this machine."""
    from kubernetes.client import rest

    official: Any = rest
    spared = ",".join(filter(None, (configuration.no_proxy, LOOPBACK)))
    if official.should_bypass_proxies(configuration.host, spared):
        configuration.proxy = None


def impersonation(user: Mapping[str, Any]) -> Headers:
    """The impersonation headers of a user; without them requests would show more than that identity may see."""
    uid, groups, extra = (user.get(key) for key in ("as-uid", "as-groups", "as-user-extra"))
    if not user.get("as"):
        if uid or groups or extra:
            raise RemoteError("the kubeconfig's user has as-uid, as-groups or as-user-extra but no `as`; add it")
        return ()
    said = [("User", user["as"]), *([("Uid", uid)] if uid else [])]
    said += [("Group", group) for group in groups or ()]
    said += [(f"Extra-{quote(key, HEADER_BYTES)}", value) for key, values in (extra or {}).items() for value in values]
    return tuple((f"Impersonate-{name}", _as_bytes(value)) for name, value in said)


def _as_bytes(value: object) -> str:
    """Makes Python's HTTP client, which writes Latin-1, send UTF-8."""
    return str(value).encode().decode("latin-1")
