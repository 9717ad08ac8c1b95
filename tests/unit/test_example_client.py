"""The example of a client, without a cluster: what it reads of a manifest, and a watch that breaks."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import urllib3
import yaml
from kubernetes import client

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "submit_and_follow.py"))
JOB = {"metadata": {"name": "a", "namespace": "default"}}


class Cluster:
    """Keeps what is applied, and watches as ``watches`` say in turn: with an event, or an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *watches: dict | Exception) -> None:
        self.applied: list[dict] = []
        self._watches = iter(watches)
        fakes = {
            "dynamic": SimpleNamespace(DynamicClient=lambda _: SimpleNamespace(resources=self)),
            "watch": SimpleNamespace(Watch=lambda: SimpleNamespace(stream=self._stream)),
            "time": SimpleNamespace(sleep=lambda _: None),
        }
        for name, fake in fakes.items():
            monkeypatch.setitem(EXAMPLE["submit"].__globals__, name, fake)

    def get(self, api_version: str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(server_side_apply=self._apply)

    def _apply(self, one: dict, **_: object) -> SimpleNamespace:
        self.applied.append(one)
        return SimpleNamespace(kind=one["kind"], to_dict=lambda: one)

    def _stream(self, *_: object, **__: object):
        happens = next(self._watches)
        if isinstance(happens, Exception):
            raise happens
        yield happens


def event(state: str, kind: str = "MODIFIED") -> dict:
    return {"type": kind, "object": {**JOB, "status": {"state": state, "display": {"state": state}}}}


def test_a_manifest_is_read_as_kubectl_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.yaml"
    text = "apiVersion: v1\nkind: TrainingJob\nspec: {a: 3e-4, b: 1E5, c: -2.5e3, d: '3e-4', e: 3e-4x, f: 10}\n"
    path.write_text(f"---\n# nothing\n---\n{text}---\n")
    cluster = Cluster(monkeypatch)
    assert EXAMPLE["submit"](str(path), "default") == cluster.applied[0]
    assert cluster.applied[0]["spec"] == {"a": 3e-4, "b": 1e5, "c": -2500.0, "d": "3e-4", "e": "3e-4x", "f": 10}
    assert yaml.safe_load("3e-4") == "3e-4", "other readers are left as they are"


def test_a_watch_that_breaks_is_begun_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    passing = [
        urllib3.exceptions.ProtocolError("broken"),
        urllib3.exceptions.MaxRetryError(None, "/"),
        *(client.ApiException(status=code) for code in (0, 410, 429, 500, 503)),
    ]
    Cluster(monkeypatch, event("Running"), *passing, event("Running"), event("Succeeded"))
    assert EXAMPLE["follow"](JOB) == "Succeeded"
    assert capsys.readouterr().out == "a: Running\na: Succeeded\n"


def test_a_watch_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, event("Running"), client.ApiException(status=403))
    with pytest.raises(client.ApiException):
        EXAMPLE["follow"](JOB)
