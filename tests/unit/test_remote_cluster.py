"""A kubeconfig read as kubectl reads it, and answers that no API server gave: with a server that answers anything."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from trainwright_operator.remote import feed
from trainwright_operator.remote.cluster import Cluster, connect
from trainwright_operator.remote.errors import IN_BETWEEN, Forbidden, Unreachable

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
def test_what_no_api_server_answers_is_told_with_the_mend(stub: Stub, cluster: Cluster, body, code: int) -> None:
    stub.will(body, code, Location="/login")
    with pytest.raises(Unreachable) as told:
        cluster.get("/api")
    assert str(told.value).endswith(IN_BETWEEN)


def test_an_answer_that_is_cut_off(stub: Stub, cluster: Cluster) -> None:
    stub.will(b'{"metadata":', lost=99)
    stub.will(b'{"message":', 403, lost=99)
    with pytest.raises(Unreachable, match="the answer was cut off"):
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
        with pytest.raises(Unreachable, match="no list of objects"):
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
    assert said == ["the API server answered 500: etcdserver: leader changed; trying again"]
