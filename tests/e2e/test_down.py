"""`cluster-down` removes every trace; another cluster beside it is not touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cluster.kind.provider import Kind
from cluster.kube import Kube


def test_nothing_is_left_of_a_cluster_that_is_down(kind: Kind, kube: Kube) -> None:
    before = interfaces()
    gone = Kind(f"gone-{os.getpid()}", nodes=1)
    try:
        gone.up_without_images()
        assert gone.kube.ready()
        assert interfaces() != before
        if gone.docker.own:  # images come with the store, though none was brought
            assert "trainwright.test/trainer" in gone.docker.run("exec", gone.control_plane, "crictl", "images")
    finally:
        gone.down()
    assert interfaces() == before
    assert not gone.state.exists()
    assert gone.name not in Path("/proc/self/mounts").read_text()
    for what in (("ps", "--all"), ("network", "ls"), ("volume", "ls")):
        assert gone.name not in gone.docker.run(*what)
    assert not [line for line in processes() if gone.name in line]
    assert kube.ready(), "the cluster beside it was touched"


def interfaces() -> set[str]:
    """The machine's network interfaces, of bridges and nodes among them."""
    return {path.name for path in Path("/sys/class/net").iterdir()}


def processes() -> list[str]:
    """Every process's command line but this test's own."""
    listing = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if int(line.split()[0]) != os.getpid() and "pytest" not in line]
