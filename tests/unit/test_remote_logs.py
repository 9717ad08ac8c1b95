"""Logs of a cluster that does not tell all of them: lost nodes, pods that are gone, an API server that fails."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from builders import make_job
from scene import Scene, running
from trainwright_operator.remote import logs
from trainwright_operator.remote.cluster import RemoteError, Unreachable, refusal
from trainwright_operator.remote.logs import Follower

LOST = refusal(500, "dial tcp 10.0.0.2:10250: i/o timeout")


class Told:
    """A cluster with the job and the pods of a scene. ``logs`` is the log of each pod, in their order.

    An error in a log is raised where it stands.
    """

    namespace = "default"

    def __init__(self, scene: Scene, logs: list[list], *, listed: list | None = None) -> None:
        self.job = {**scene.builder.manifest(), "status": scene.status}
        self.pods = sorted(scene.objects.pods.values(), key=lambda pod: pod["metadata"]["name"])
        self._logs = dict(zip((pod["metadata"]["name"] for pod in self.pods), logs, strict=False))
        self._listed = listed or []
        self.read: list[str] = []

    def get(self, path: str, **_: str) -> dict:
        return self.job

    def items(self, path: str, **_: str) -> list[dict]:
        if self._listed:
            raise self._listed.pop()
        return self.pods

    def lines(self, path: str, container: str, **_: str) -> Iterator[str]:
        self.read.append(container)
        for number, text in enumerate(self._logs[path.split("/")[-2]]):
            if isinstance(text, Exception):
                raise text
            yield f"2026-01-01T00:00:0{number}Z {text}"


def succeeded() -> Scene:
    return running().exit_all(0).settle()


def read(cluster: Told, **options: object) -> int:
    """``trainwright logs`` with the cluster given."""
    given = {"rank": None, "attempt": None, "previous": False, "tail": None, "timestamps": False, "follow": False}
    return logs.main.__wrapped__(cluster, argparse.Namespace(name="gpt-corpus", **{**given, **options}))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "HOLD_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(logs, name, 0.01)


@pytest.mark.parametrize("follow", [False, True])
def test_a_pod_that_cannot_be_read_hides_no_other(capsys: pytest.CaptureFixture[str], follow: bool) -> None:
    cluster = Told(succeeded(), [["one", "two"], [LOST]])
    assert read(cluster, follow=follow) == 0
    told = capsys.readouterr()
    assert told.out == "[rank 0] one\n[rank 0] two\n"
    lost = cluster.pods[1]["metadata"]["name"]
    assert f"{lost}: the API server answered 500: dial tcp 10.0.0.2:10250: i/o timeout" in told.err


def test_a_log_that_ends_before_its_end_is_told_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(Told(running(), [["one", Unreachable("cut off")], ["two", "three"]])) == 0
    told = capsys.readouterr()
    assert told.out == "[rank 0] one\n[rank 1] two\n[rank 1] three\n"
    assert told.err.endswith(": cut off\n")
    assert told.err.count("\n") == 1


def test_logs_fail_when_no_pod_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Told(running(), [[LOST], [LOST]])
    first, last = (pod["metadata"]["name"] for pod in cluster.pods)
    with pytest.raises(RemoteError, match=f"^{last}: the API server answered 500"):
        read(cluster)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"{first}: {LOST}\n")


@pytest.mark.parametrize("follow", [False, True])
def test_a_job_whose_pods_are_gone_has_no_logs(follow: bool) -> None:
    cluster = Told(succeeded(), [])
    cluster.pods = []
    with pytest.raises(RemoteError, match="gpt-corpus has no pods now"):
        read(cluster, follow=follow)


def test_an_api_server_that_fails_is_no_end_of_the_pods(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(Told(succeeded(), [["one"], ["two"]], listed=[LOST] * 3), follow=True) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["[rank 0] one", "[rank 1] two"]


@pytest.mark.parametrize("follow", [False, True])
def test_an_attempt_that_never_was_is_not_the_newest(follow: bool) -> None:
    with pytest.raises(RemoteError, match="attempt 0 has no pods; there are pods of attempt 1"):
        read(Told(succeeded(), [["one"], ["two"]]), follow=follow, attempt=0)


def test_the_first_attempt_is_one_that_was_asked_for() -> None:
    for attempt, previous, pinned in ((None, False, False), (0, False, True), (1, False, True), (None, True, True)):
        follower = Follower(Told(running(), []), argparse.Namespace(attempt=attempt, previous=previous))
        assert follower._pinned is pinned


BEFORE = [{"name": "istio-init", "state": {"terminated": {"exitCode": 0}}}, {"name": "istio-validation"}]


@pytest.mark.parametrize("follow", [False, True])
def test_a_pod_whose_init_container_failed_shows_the_log_of_that_one(
    capsys: pytest.CaptureFixture[str], follow: bool
) -> None:
    scene = Scene(make_job().with_("spec.maxRestarts", 0)).settle()
    failed = {"terminated": {"exitCode": 126, "message": "iptables: permission denied"}}
    waits = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
    scene.pod()["status"] = {
        "phase": "Failed",
        "initContainerStatuses": [BEFORE[0], BEFORE[1] | {"state": failed}],
        "containerStatuses": [waits],
    }
    cluster = Told(scene.settle(), [["iptables: permission denied"]])
    assert read(cluster, follow=follow) == int(follow)
    told = capsys.readouterr()
    assert (told.out, cluster.read) == ("iptables: permission denied\n", ["istio-validation"])
    assert "init container istio-validation failed, so the trainer never ran; this is its log" in told.err


def test_the_trainers_log_is_asked_for_by_name_for_a_sidecar_may_have_one_as_well() -> None:
    cluster = Told(running(), [["one"], ["two"]])
    read(cluster)
    assert cluster.read == ["trainer", "trainer"]


def test_an_init_container_at_work_is_shown_and_a_native_sidecar_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene(make_job()).settle()
    pod = scene.pod()
    pod["spec"]["initContainers"] = [{"name": "mesh", "restartPolicy": "Always"}, {"name": "download"}]
    statuses = [{"name": name, "state": {"running": {}}} for name in ("mesh", "download")]
    pod["status"] = {"phase": "Pending", "initContainerStatuses": statuses}
    cluster = Told(scene, [["10 %"]])
    assert read(cluster) == 0
    assert cluster.read == ["download"]
    assert "init container download is running; this is its log" in capsys.readouterr().err
