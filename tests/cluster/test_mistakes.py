"""What can be in the way of a cluster, said in one line each before anything is made; and the next start works."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import __main__ as command
from cluster import disk, paths, programs
from cluster.control_plane import ControlPlane
from cluster.kind import engine, nodes
from cluster.process import Daemon
from cluster.say import ClusterError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State of their own; none of the settings of the machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("TRAINWRIGHT_OWN_DOCKER", nodes.SETTING):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def docker(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A ``docker`` that comes first on PATH."""
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_what_is_needed_of_the_disk_is_said_first(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 5 * 10**9))
    assert command.main(["up", "--name", "small"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("cluster: needs ")
    assert "GB of disk are needed in" in said[1]
    assert "5 are free: make room" in said[1]
    assert len(said) == 2


def test_one_more_image_asks_for_its_room_before_it_is_built(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    up = paths.state_dir("small")
    up.mkdir(parents=True)
    (up / "kubeconfig").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 5 * 10**9))
    assert command.main(["images", "--name", "small", "--more", "trainer-xla"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("cluster: needs 13 GB of disk in ")
    assert "5 are free: make room" in said[1]
    assert len(said) == 2


def test_a_disk_with_room_is_no_error(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    disk.check()


def test_what_a_killed_docker_changed_is_put_back(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "cache"))
    limit = folders / "max_user_instances"
    limit.write_text("128")
    monkeypatch.setattr(engine, "WATCHERS", limit)
    for _ in range(2):  # the first one is killed, and leaves its folder
        engine._remove_traces()
        engine._state().mkdir(parents=True)
        engine._raise_limit()
        assert int(limit.read_text()) == engine.ENOUGH_WATCHERS
    engine._remove_traces()
    assert limit.read_text() == "128"
    assert not engine._state().exists()


def test_the_nodes_of_a_killed_docker_are_ended(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CGROUP", "no-node-of-this-machine")
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*wait, engine._state() / "exec/shim"]) as left, subprocess.Popen(wait) as another:
        engine._end_orphans()
        assert left.wait(10) == -signal.SIGKILL
        assert another.poll() is None
        another.kill()


def test_only_root_can_start_a_docker(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker(folders, monkeypatch, "echo 'permission denied while trying to connect' >&2; exit 1")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    words = (
        r"no Docker answers \(permission denied .*\), and only root can start one: start Docker, or run this as root"
    )
    with pytest.raises(ClusterError, match=words):
        engine.start(engine.engine(folders), folders)


def test_where_no_docker_is_installed_there_is_nothing_to_remove(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DEBIANS_CLIENT", str(folders / "no-docker"))
    monkeypatch.setenv("PATH", str(folders))
    assert command.main(["down", "--name", "gone"]) == 0
    assert not (folders / "state/trainwright/clusters/gone").exists()


def test_a_docker_that_runs_is_used(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker(folders, monkeypatch, "exit 0")
    found = engine.engine(folders)
    assert not found.own
    engine.start(found, folders)
    assert not engine.engine(folders).own


def test_a_cluster_stays_in_the_docker_that_it_was_started_in(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / engine.RECORD).write_text(engine.OWN)
    docker(folders, monkeypatch, "exit 0")
    assert engine.engine(folders).own
    (folders / engine.RECORD).write_text(engine.MACHINE)
    (folders / "bin/docker").write_text("#!/bin/sh\nexit 1\n")
    assert not engine.engine(folders).own


HAS_OFFICIAL = f'case "$*" in *"{nodes.OFFICIAL}"*) exit 0;; *) exit 1;; esac'
HAS_NONE = "exit 1"


@pytest.mark.parametrize(("script", "official"), [(HAS_OFFICIAL, True), (HAS_NONE, False)])
def test_the_nodes_are_of_the_official_image_where_it_can_be_had(
    folders: Path, monkeypatch: pytest.MonkeyPatch, script: str, official: bool
) -> None:
    docker(folders, monkeypatch, script)
    chosen = nodes.choose(engine.Engine("docker"))
    assert chosen.official == official
    assert ("kubelet" in chosen.programs) != official


def test_an_image_named_by_the_setting_has_to_be_there(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker(folders, monkeypatch, HAS_NONE)
    monkeypatch.setenv(nodes.SETTING, "nowhere/node:1")
    with pytest.raises(ClusterError, match=r"TRAINWRIGHT_NODE_IMAGE=nowhere/node:1: Docker neither has this image nor"):
        nodes.choose(engine.Engine("docker"))


def test_the_official_image_is_the_one_of_this_release_of_kind() -> None:
    if programs.missing(("kind",)):
        pytest.skip("kind is not built yet")
    assert nodes.OFFICIAL.encode() in programs.program("kind").read_bytes()


def test_a_name_that_would_not_do_for_everything_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["up", "--name", "No Good"]) == 1
    assert capsys.readouterr().err == (
        "cluster: error: --name 'No Good': use at most 20 lower-case letters, digits and '-', a letter first\n"
    )


def test_a_full_disk_in_the_middle_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/cache/programs")

    monkeypatch.setattr(programs, "build", full)
    assert command.main(["build"]) == 1
    assert capsys.readouterr().err == (
        "cluster: error: /cache/programs: No space left on device: make room, and run the same command again\n"
    )


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "build", interrupted)
    assert command.main(["build"]) == 130
    assert capsys.readouterr().err.startswith("cluster: interrupted; run the same command again to go on")


@pytest.fixture
def control_plane() -> ControlPlane:
    if absent := programs.missing(programs.CONTROL_PLANE):
        pytest.skip(f"not built yet: {', '.join(absent)} (make cluster-tools builds them once; it needs Go)")
    return ControlPlane("mistakes", nodes=0)


def taken(port: int) -> socket.socket:
    """A listener of another process's: it gets the port as soon as what was killed has let go of it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline, f"port {port} is held for a minute"
            time.sleep(0.05)


def test_ports_that_were_taken_meanwhile_are_given_up(
    control_plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        control_plane.up()
        for daemon in control_plane.daemons():
            daemon.kill()
        port = int(control_plane.kube._configuration.host.rpartition(":")[2])
        with taken(port):
            control_plane.up()
            assert control_plane.kube.ready()
        said = capsys.readouterr().err
        assert f"{port} of kube-apiserver" in said
        assert "making mistakes anew, on free ports" in said
    finally:
        control_plane.down()


def test_a_start_that_was_broken_off_is_gone_on_with(control_plane: ControlPlane) -> None:
    try:
        control_plane.state.mkdir(parents=True)
        (control_plane.state / "pki").mkdir()
        (control_plane.state / "pki" / "ca.crt").write_text("half")
        control_plane.up()
        assert control_plane.kube.ready()
    finally:
        control_plane.down()
    assert not control_plane.state.exists()


def test_a_program_that_ends_while_it_starts_is_reported_with_its_last_lines(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ControlPlane, "_scheduler", lambda self: ["--no-such-flag"])
    try:
        with pytest.raises(
            ClusterError, match=r"kube-scheduler ended while starting(.|\n)*unknown flag: --no-such-flag"
        ):
            control_plane.up()
        assert not any(daemon.alive() for daemon in control_plane.daemons())
    finally:
        control_plane.down()


def test_nothing_runs_of_a_control_plane_that_is_down(control_plane: ControlPlane) -> None:
    control_plane.up()
    pids = [daemon.pid() for daemon in control_plane.daemons()]
    control_plane.down()
    assert all(pids)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and _is_ours(pid, control_plane)]
    assert not Daemon("etcd", [], control_plane.state).alive()


def _is_ours(pid: int | None, cluster: ControlPlane) -> bool:
    return str(cluster.state) in Path(f"/proc/{pid}/cmdline").read_text()
