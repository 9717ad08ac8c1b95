"""The cache of built programs: built once, verified, and good again after an interrupted build. Builds the smallest."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import programs
from cluster.say import ClusterError

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")

KIND = ("kind",)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; Go's own cache of compiled packages stays the machine's."""
    go_cache = subprocess.run(["go", "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GOCACHE", go_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_program_is_built_once_and_says_the_pinned_version(cache: Path) -> None:
    assert programs.missing(KIND) == ["kind"]
    programs.build(KIND)
    made = programs.program("kind").stat()
    said = subprocess.run([programs.program("kind"), "version"], capture_output=True, text=True, check=True).stdout
    programs.build(KIND)
    assert programs.version(programs.module_of("kind")) in said
    assert programs.program("kind").stat().st_ino == made.st_ino, "it was built again"


def test_what_an_interrupted_build_left_is_not_taken_for_a_program(cache: Path) -> None:
    folder = programs.program("kind").parent
    (folder / ".building-left-over").mkdir(parents=True)
    (folder / ".building-left-over" / "kind").write_text("half")
    programs.build(KIND)
    subprocess.run([programs.program("kind"), "version"], check=True, capture_output=True)


def test_two_builds_at_once_make_one_whole_program(cache: Path) -> None:
    builds = [multiprocessing.get_context("fork").Process(target=programs.build, args=(KIND,)) for _ in range(2)]
    for build in builds:
        build.start()
    for build in builds:
        build.join()
    assert [build.exitcode for build in builds] == [0, 0]
    subprocess.run([programs.program("kind"), "version"], check=True, capture_output=True)


def test_a_program_of_another_version_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "version", lambda module: "v0.0.1")
    with pytest.raises(ClusterError, match=r"kind was built from v\S+ of sigs\.k8s\.io/kind, and v0\.0\.1 is pinned"):
        programs.build(KIND)
    assert programs.missing(KIND) == ["kind"]


def test_without_go_one_line_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match=r"install Go 1\.26 or newer"):
        programs.build(KIND)
