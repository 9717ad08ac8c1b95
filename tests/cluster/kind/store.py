"""Images that the nodes of the harness's own Docker share: unpacked once for the machine, not once for every node.

A store is the data folder of a container runtime that has ended. A node takes over its records, which are small, and
sees the layers themselves, which never change, where they are. So a node starts with all images on it, and no second
copy of them is made; what has changed since comes from the registry. A changed line of our code makes no new store: its
key holds all layers of the images but their last, which is our code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from cluster import paths
from cluster.kind import node_image, registry
from cluster.kind.engine import Engine
from cluster.say import timed


def prepared(docker: Engine, cluster: str, node: str, local: list[str], pushed: list[str]) -> Path:
    """The store of what Kubernetes needs and of the ``pushed`` images, which Docker here calls ``local``."""
    archives = node_image.archives(docker, node)
    folder = _folder() / f"{_base_key(node, archives)}-{_layers_key(docker, local)}"
    if not folder.exists():
        with timed("unpacking the images for all nodes"):
            _make(docker, cluster, node, archives, pushed, folder)
    os.utime(folder)
    return folder


def newest(docker: Engine, node: str) -> Path | None:
    """The store that was used last with this node image, whatever of our images is in it."""
    key = _base_key(node, node_image.archives(docker, node))
    return max(_folder().glob(f"{key}-*"), key=lambda folder: folder.stat().st_mtime, default=None)


def prune() -> None:
    """Remove the stores that are neither the newest nor under the nodes of a cluster."""
    stores = sorted(_folder().glob("*"), key=lambda folder: folder.stat().st_mtime)
    used = paths.used_by_clusters()
    for folder in stores[:-1]:
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _make(docker: Engine, cluster: str, node: str, archives: Path, pushed: list[str], folder: Path) -> None:
    name = f"{cluster}-store"
    docker.succeeds("rm", "--force", name)  # a killed command's, which goes on by itself
    folder.parent.mkdir(parents=True, exist_ok=True)
    with paths.scratch() as scratch:
        (scratch / "made").mkdir()
        volumes = [
            f"--volume={scratch / 'made'}:/var/lib/containerd",
            f"--volume={archives}:/kind/images:ro",
            f"--volume={registry.hosts(cluster)}:/etc/containerd/certs.d:ro",
        ]
        try:
            docker.run("run", "--privileged", f"--name={name}", f"--net={cluster}", *volumes, node, "store", *pushed)
            (scratch / "made").rename(folder)
        finally:
            docker.succeeds("rm", "--force", "--volumes", name)


def _folder() -> Path:
    return paths.cache_dir() / "stores"


def _base_key(node: str, archives: Path) -> str:
    return hashlib.sha256(f"{node} {archives.name}".encode()).hexdigest()[:12]


def _layers_key(docker: Engine, images: list[str]) -> str:
    layers = [json.loads(docker.run("image", "inspect", "--format={{json .RootFS.Layers}}", image)) for image in images]
    return hashlib.sha256(json.dumps([one[:-1] for one in layers]).encode()).hexdigest()[:12]
