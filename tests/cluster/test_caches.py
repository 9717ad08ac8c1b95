"""What is kept from one cluster to the next is used again, and goes when nothing needs it any more."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from cluster import paths, programs
from cluster.kind import images, node_image, registry, store
from cluster.kind.engine import Engine

LONG_AGO = time.time() - programs.UNUSED_SECONDS - 60


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and clusters of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def folder(*parts: str, used: float | None = None) -> Path:
    """A folder of the cache that was last used then."""
    made = paths.cache_dir().joinpath(*parts)
    made.mkdir(parents=True)
    os.utime(made, (used or time.time(),) * 2)
    return made


def cluster(name: str, **files: object) -> None:
    """A cluster that is up, with these files in its state folder."""
    paths.state_dir(name).mkdir(parents=True)
    for stem, content in files.items():
        (paths.state_dir(name) / f"{stem}.json").write_text(json.dumps(content))


def test_programs_that_no_checkout_asks_for_are_removed_after_two_weeks(monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent = folder("programs", "etcd-old", used=LONG_AGO), folder("programs", "etcd-recent")
    current = folder("programs", programs.program("etcd").parent.name, used=LONG_AGO)
    (current / "etcd").write_text("whole")
    programs.build(("etcd",))
    assert (old.exists(), recent.exists(), current.exists()) == (False, True, True)
    assert current.stat().st_mtime > LONG_AGO + 1, "its use was not noted"


def test_stores_go_but_for_the_newest_and_those_under_nodes() -> None:
    old, mounted, newest = (folder("stores", f"key-{i}", used=LONG_AGO + i) for i in range(3))
    cluster("up", kind={"nodes": [{"extraMounts": [{"hostPath": str(mounted)}]}]})
    store.prune()
    assert (old.exists(), mounted.exists(), newest.exists()) == (False, True, True)


def test_archives_go_but_for_the_current_and_those_under_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    old, mounted, current = (folder("node-images", key) for key in ("old", "mounted", "current"))
    cluster("up", kind={"nodes": [{"extraMounts": [{"hostPath": str(mounted)}]}]})
    monkeypatch.setattr(node_image, "archives", lambda docker, node: current)
    node_image.prune(Engine("docker"), "node")
    assert (old.exists(), mounted.exists(), current.exists()) == (False, True, True)


def tag(image: str, brought: float) -> Path:
    """An image in the registry's folder, by its name and tag."""
    repository, _, name = image.partition(":")
    made = folder("registry/docker/registry/v2/repositories", repository, "_manifests/tags", name)
    link = made / "current" / "link"
    link.parent.mkdir()
    link.write_text("sha256:...")
    os.utime(link, (brought, brought))
    return made


def test_images_go_from_the_registry_when_no_cluster_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(Engine, "run", lambda self, *arguments: asked.append(arguments) or "")
    old, used, just_now = tag("trainer:1", LONG_AGO), tag("trainer:2", LONG_AGO), tag("trainer:3", time.time())
    cluster("up", images={"trainer": "trainwright.test/trainer:2"})
    registry.prune(Engine("docker"), "up")
    assert (old.exists(), used.exists(), just_now.exists()) == (False, True, True)
    assert [words[2:4] for words in asked] == [("registry", "garbage-collect")]
    registry.prune(Engine("docker"), "up")
    assert len(asked) == 1, "collected again with nothing to collect"


@pytest.mark.parametrize(
    ("had", "left"),
    [
        ({"trainer": "trainwright.test/trainer:1"}, {"trainer", "operator"}),
        ({"trainer-xla": "trainwright.test/trainer-xla:1"}, {"trainer", "operator", "trainer-xla"}),
    ],
    ids=["no-cluster-has-it", "one-has-it"],
)
def test_an_image_that_was_asked_for_goes_from_docker_when_no_cluster_has_it(
    monkeypatch: pytest.MonkeyPatch, had: dict[str, str], left: set[str]
) -> None:
    there = {images.local_name(name): name for name in images.IMAGES}
    removed: list[str] = []
    monkeypatch.setattr(Engine, "run", lambda self, *arguments: "\n".join(there))
    monkeypatch.setattr(Engine, "succeeds", lambda self, *arguments: bool(removed.append(arguments[-1])))
    cluster("up", images=had)
    images.prune(Engine("docker"), "node")
    assert {name for local, name in there.items() if local not in removed} == left


def test_what_a_killed_command_left_half_made_is_removed() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, at_work = folder("scratch", f"{ended.pid}-left"), folder("scratch", f"{os.getpid()}-at-work")
    with paths.scratch() as mine:
        assert mine.is_dir()
        assert (left.exists(), at_work.exists()) == (False, True)
    assert not mine.exists()
