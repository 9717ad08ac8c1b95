"""The registry that brings the project's images to the nodes: what has not changed of an image is not sent again.

It runs beside the nodes, under the name ``trainwright.test`` for them and a free port of loopback for Docker. What it
holds stays in the cache, so that the next cluster finds it.
"""

from __future__ import annotations

import os
import shutil
import time
import urllib.request
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path

from cluster import locks, paths, programs
from cluster.kind.archive import Image
from cluster.kind.engine import Engine
from cluster.say import ClusterError, timed

DOMAIN = "trainwright.test"
PORT = 5000
CONFIG = f"""\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: /var/lib/registry}}
  delete: {{enabled: true}}
http: {{addr: ":{PORT}"}}
"""
TAGS = "docker/registry/v2/repositories/*/_manifests/tags/*"
JUST_NOW_SECONDS = 3600
START_SECONDS = 60
IMAGE = f"{DOMAIN}/registry:{programs.version(programs.module_of('registry'))}"


def start(docker: Engine, cluster: str) -> None:
    """Start the cluster's registry, where it does not run, on the cluster's network; it answers when this returns."""
    if docker.succeeds("container", "inspect", container(cluster)):
        docker.run("start", container(cluster))
    else:
        _create(docker, cluster)
    _wait_until_it_answers(docker, cluster)


def _create(docker: Engine, cluster: str) -> None:
    _load_image(docker)
    storage = _storage()
    storage.mkdir(parents=True, exist_ok=True)
    volume = f"--volume={storage}:/var/lib/registry"
    user = f"--user={os.getuid()}:{os.getgid()}"  # what it writes into the cache belongs to who owns the cache
    port = f"--publish=127.0.0.1::{PORT}"
    docker.run("run", "--detach", f"--name={container(cluster)}", f"--net={cluster}", port, volume, user, IMAGE)


def _wait_until_it_answers(docker: Engine, cluster: str) -> None:
    """Docker takes connections to the published port before the registry listens behind it, and closes them."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://{_address(docker, cluster)}/v2/", timeout=5):
                return
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"the registry {container(cluster)} does not answer: {error}") from error
            time.sleep(0.1)


def _address(docker: Engine, cluster: str) -> str:
    """Where Docker reaches it."""
    port = docker.run("port", container(cluster), str(PORT)).splitlines()[0].rpartition(":")[2]
    return f"127.0.0.1:{port}"


def remove(docker: Engine, cluster: str) -> None:
    """Remove the registry; what it held stays in the cache."""
    docker.succeeds("rm", "--force", "--volumes", container(cluster))


def container(cluster: str) -> str:
    """The name of the registry's container."""
    return f"{cluster}-registry"


def hosts(cluster: str) -> Path:
    """The folder that tells a container runtime where images of ``trainwright.test`` come from."""
    server = f"http://{container(cluster)}:{PORT}"
    folder = paths.state_dir(cluster) / "certs.d"
    (folder / DOMAIN).mkdir(parents=True, exist_ok=True)
    (folder / DOMAIN / "hosts.toml").write_text(
        f'server = "{server}"\n[host."{server}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    return folder


def push(docker: Engine, cluster: str, image: str) -> str:
    """Push a local image; returns the name that the nodes know it by, whose tag is the image's own digest."""
    digest = docker.run("image", "inspect", "--format={{.Id}}", image).removeprefix("sha256:")[:12]
    path = f"{_repository(image)}:{digest}"
    local = f"{_address(docker, cluster)}/{path}"
    docker.run("tag", image, local)
    with timed(f"bringing {path} to the registry"), _alone():
        docker.run("push", "--quiet", local)
    docker.run("rmi", local)
    return f"{DOMAIN}/{path}"


def prune(docker: Engine, cluster: str) -> None:
    """Remove the images that no cluster has any more, and the layers that were theirs alone.

    One that was brought just now may be on its way to the nodes of a cluster that does not list it yet.
    """
    kept = "".join(file.read_text() for file in paths.clusters_dir().glob("*/images.json"))
    with _alone():
        tags = [tag for tag in _storage().glob(TAGS) if time.time() - _brought(tag) > JUST_NOW_SECONDS]
        old = [tag for tag in tags if f"/{tag.parts[-4]}:{tag.name}" not in kept]
        for tag in old:
            shutil.rmtree(tag)
        if old:
            collect = ("registry", "garbage-collect", "--delete-untagged", "/etc/registry.yml")
            docker.run("exec", container(cluster), *collect)


def _storage() -> Path:
    return paths.cache_dir() / "registry"


def _brought(tag: Path) -> float:
    return (tag / "current" / "link").stat().st_mtime


def _alone() -> AbstractContextManager[None]:
    """Two clusters have a registry each, over the same folder: nothing is removed while something is brought."""
    return locks.alone(_storage(), "waiting for another cluster's registry")


def _repository(image: str) -> str:
    return image.removeprefix(f"{DOMAIN}/").partition(":")[0]


def _load_image(docker: Engine) -> None:
    if docker.succeeds("image", "inspect", IMAGE):
        return
    with paths.scratch() as folder:
        config, archive = folder / "registry.yml", folder / "registry.tar"
        config.write_text(CONFIG)
        files = {"/usr/local/bin/registry": programs.program("registry"), "/etc/registry.yml": config}
        Image(IMAGE, files, ("registry", "serve", "/etc/registry.yml")).write(archive)
        docker.run("load", "--quiet", "--input", str(archive))
