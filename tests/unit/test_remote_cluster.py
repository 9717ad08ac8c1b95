"""A kubeconfig read as kubectl reads it, and answers that no API server gave: with a server that answers anything."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from trainwright_operator.cli import main
from trainwright_operator.remote import feed
from trainwright_operator.remote.cluster import CHECK_PROXY, Cluster, Forbidden, RemoteError, Unreachable, connect

CLI = [sys.executable, "-m", "trainwright_operator.cli"]
META = {"name": "a", "namespace": "default", "resourceVersion": "5", "uid": "u", "generation": 1}
RUNNING = {"state": "Running", "display": {"state": "Running", "step": "1/2"}, "observedGeneration": 1}
JOB = {"kind": "TrainingJob", "metadata": META, "spec": {}, "status": RUNNING}


class Stub(ThreadingHTTPServer):
    """Answers every request with the next of ``answers``, and the last of them for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, bytes, dict[str, str]]] = []
        self.asked: list[BaseHTTPRequestHandler] = []

    def will(self, body: object, code: int = 200, *, lost: int = 0, **headers: str) -> None:
        """``lost`` bytes are promised and never sent."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.append((code, text, {"Content-Length": str(len(text) + lost), **headers}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.server.asked.append(self)
        code, body, headers = self.server.answers[0]
        self.server.answers = self.server.answers[1:] or self.server.answers
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def kubeconfig(path: Path, server: str = "http://127.0.0.1:9", current: str | None = "x", **user: object) -> Path:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret", **user}}],
        "contexts": [{"name": name, "context": {"cluster": "c", "user": "u", "namespace": name}} for name in "xy"],
        **({} if current is None else {"current-context": current}),
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def cluster(stub: Stub, tmp_path: Path) -> Cluster:
    return connect(str(kubeconfig(tmp_path / "config", stub.url)), None, None)


# Answers


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"<html>log in</html>", 200), ([1, 2], 200), ({"error": "log in"}, 200), (b"", 200), (b"", 302)],
    ids=["page", "list", "other object", "nothing", "redirect"],
)
def test_an_answer_that_no_api_server_gives_is_reported_with_the_fix(
    stub: Stub, cluster: Cluster, body, code: int
) -> None:
    stub.will(body, code, Location="/login")
    with pytest.raises(Unreachable) as told:
        cluster.get("/api")
    assert str(told.value).endswith(CHECK_PROXY)


def test_an_answer_that_is_cut_off_is_an_error_that_says_so(stub: Stub, cluster: Cluster) -> None:
    stub.will(b'{"metadata":', lost=99)
    stub.will(b'{"message":', 403, lost=99)
    with pytest.raises(Unreachable, match="the response was cut off"):
        cluster.get("/api")
    with pytest.raises(Forbidden, match="HTTP 403"):
        list(cluster.lines("/api"))


class Watched:
    """A cluster whose collection is ``listings`` in turn, and its watches ``watches``, each a list of lines."""

    def __init__(self, listings: list, watches: list) -> None:
        self._listings, self._watches = iter(listings), iter(watches)

    def get(self, path: str, **_: str) -> dict:
        return next(self._listings)

    def lines(self, path: str, **_: str) -> Iterator[str]:
        yield from next(self._watches)


LISTING = {"metadata": {"resourceVersion": "5"}, "items": [JOB]}


@pytest.mark.parametrize("line", ["<html>", '{"type":"MODIF', "[]", '{"type":"MODIFIED","object":{"metadata":{}}}'])
def test_a_watch_goes_on_after_a_line_that_is_no_change(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(feed, "RETRY_SECONDS", 0)
    later = {**JOB, "spec": {"new": True}}
    change = json.dumps({"type": "MODIFIED", "object": later})
    said: list[str] = []
    jobs = feed.snapshots(Watched([LISTING], [[line], [line], [change]]), "/", said.append)
    assert [next(jobs), next(jobs)] == [{("default", "a"): JOB}, {("default", "a"): later}]
    assert len(said) == 1


def test_a_list_of_another_kind_is_no_collection() -> None:
    for listing in ({"metadata": {}, "items": []}, {"metadata": {"resourceVersion": "5"}}, {"items": [{}]}):
        with pytest.raises(Unreachable, match="not a list of objects"):
            next(feed.snapshots(Watched([listing], []), "/", print))


def test_a_watch_goes_on_after_a_failure_of_the_api_server(
    monkeypatch: pytest.MonkeyPatch, stub: Stub, cluster: Cluster
) -> None:
    monkeypatch.setattr(feed, "RETRY_SECONDS", 0)
    stub.will(LISTING)
    for code in (500, 502, 504):
        stub.will({"message": "etcdserver: leader changed"}, code)
    stub.will({"type": "DELETED", "object": JOB})
    said: list[str] = []
    jobs = feed.snapshots(cluster, "/jobs", said.append)
    assert [next(jobs), next(jobs)] == [{("default", "a"): JOB}, {}]
    assert said == ["the API server answered 500: etcdserver: leader changed; retrying"]


def test_a_reader_that_has_seen_enough_is_no_failure(stub: Stub, tmp_path: Path) -> None:
    stub.will(JOB)
    stub.will(LISTING)
    command = [*CLI, "watch", "a", "-n", "default", "--kubeconfig", str(kubeconfig(tmp_path / "config", stub.url))]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watch.stdout.close()
    assert (watch.wait(60), watch.stderr.read()) == (0, b"")
    watch.stderr.close()


# The kubeconfig


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_context_is_chosen_without_a_current_one(tmp_path: Path, current: str | None) -> None:
    path = str(kubeconfig(tmp_path / "config", current=current))
    assert connect(path, "y", None).namespace == "y"
    with pytest.raises(RemoteError, match=r"no context named 'z' in .*; there are x, y$"):
        connect(path, "z", None)
    with pytest.raises(RemoteError, match="no context named 'gone'" if current else "has no current context"):
        connect(path, None, None)


def test_the_first_of_several_files_names_the_current_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [kubeconfig(tmp_path / f"config{current}", current=current) for current in ("", "y", "x")]
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, files)))
    assert connect(None, None, None).namespace == "y"


@pytest.mark.parametrize(
    ("server", "spared", "taken"),
    [
        ("https://api.example", "", True),
        ("https://api.example", "other.example", True),
        ("https://api.example:6443", "localhost,.example", False),
        ("https://10.1.2.3", "10.0.0.0/8", False),
        ("https://127.0.0.1:6443", "", False),
    ],
)
def test_the_proxy_of_the_environment_is_used_unless_no_proxy_names_the_server(
    tmp_path: Path, monkeypatch, server: str, spared: str, taken: bool
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", spared)
    made = connect(str(kubeconfig(tmp_path / "config", server)), None, None)
    assert (made.http.proxy is not None) is taken


def proxied(path: Path, proxy: str) -> str:
    config = yaml.safe_load(kubeconfig(path).read_text())
    config["clusters"][0]["cluster"]["proxy-url"] = proxy
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_the_proxy_of_the_kubeconfig_goes_before_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    path = proxied(tmp_path / "config", "http://proxy.example:3128")
    assert connect(path, None, None).http.proxy.host == "proxy.example"


def test_a_proxy_of_another_kind_is_told_without_its_password(tmp_path: Path) -> None:
    path = proxied(tmp_path / "config", "gopher://me:password@proxy.example")
    with pytest.raises(RemoteError, match=r"the proxy for http://127\.0\.0\.1:9 cannot be used: ") as told:
        connect(path, None, None)
    assert "password" not in str(told.value)


def test_requests_are_made_for_whom_the_kubeconfig_says(stub: Stub, tmp_path: Path) -> None:
    stub.will(JOB)
    whom = {"as": "Zoë", "as-uid": "7", "as-groups": ["dev", "ops"], "as-user-extra": {"acme.com/reason%": ["a", "b"]}}
    connect(str(kubeconfig(tmp_path / "config", stub.url, **whom)), None, None).get("/api")
    headers = stub.asked[0].headers
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Impersonate-User"].encode("latin-1", "surrogateescape").decode() == "Zoë"
    assert headers["Impersonate-Uid"] == "7"
    assert headers.get_all("Impersonate-Group") == ["dev", "ops"]
    assert headers.get_all("Impersonate-Extra-acme.com%2Freason%25") == ["a", "b"]


def test_groups_without_a_user_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="but no `as`; add it"):
        connect(str(kubeconfig(tmp_path / "config", **{"as-groups": ["dev"]})), None, None)


def test_a_token_file_may_end_its_line(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine\n")
    path = kubeconfig(tmp_path / "config", stub.url, tokenFile=str(tmp_path / "token"))
    path.write_text(path.read_text().replace("token: secret", ""))
    stub.will(JOB)
    connect(str(path), None, None).get("/api")
    assert stub.asked[0].headers["Authorization"] == "Bearer mine"


@pytest.mark.parametrize("command", ["watch", "logs", "report", "describe"])
def test_a_job_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for name in ("",) if command == "report" else ("", "."):  # a report may be of this folder
        assert main([command, name, "--kubeconfig", str(kubeconfig(tmp_path / "config"))]) == 2
        assert capsys.readouterr().err == "error: give the name of a TrainingJob\n"
