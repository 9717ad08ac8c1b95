"""The project's own images: built by BuildKit from the Dockerfiles that users get."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cluster import paths
from cluster.kind import node_image, registry
from cluster.kind.engine import Engine
from cluster.kind.rootfs import python_base
from cluster.say import timed

OFFICIAL_BASE = "python:3.13-slim"
IMAGES = {
    "trainer": ("trainer_image/Dockerfile", "cpu"),
    "operator": ("operator/Dockerfile", ""),
    "trainer-xla": ("trainer_image/Dockerfile", "tpu-xla"),
    "trainer-mlflow": ("tests/e2e/mlflow/Dockerfile", ""),
}
EXTENDED = {"trainer-mlflow": "trainer"}
"""Those that begin from another one of these instead of a plain Python."""
USUAL = ("trainer", "operator")
"""What every cluster has; the others take gigabytes of downloads, and come where they are asked for."""


def build(docker: Engine, names: Iterable[str]) -> dict[str, str]:
    """Build those of ``IMAGES`` of which something changed; their local names by their names here."""
    base = base_image(docker)
    return {name: _build(docker, name, base) for name in names}


def prune(docker: Engine, node: str) -> None:
    """Remove what earlier versions left in the harness's own Docker."""
    kept = {node, node_image.BASE.image_name, python_base().image_name, registry.IMAGE, *map(local_name, _wanted())}
    ours = docker.run("images", "--format={{.Repository}}:{{.Tag}}", "trainwright.test/*").split()
    for image in set(ours) - kept:
        docker.succeeds("rmi", image)  # one that a container uses stays
    docker.run("image", "prune", "--force")
    docker.run("builder", "prune", "--force", "--keep-storage=4GB")


def _wanted() -> set[str]:
    """Those that every cluster has, and those that one that is up was given."""
    records = (json.loads(file.read_text()) for file in paths.clusters_dir().glob("*/images.json"))
    return {*USUAL, *(name for record in records for name in record)}


def base_image(docker: Engine) -> str:
    """The official Python image where Docker has it or can pull it, else one of the same shape."""
    if not docker.own and (
        docker.succeeds("image", "inspect", OFFICIAL_BASE) or docker.succeeds("pull", OFFICIAL_BASE)
    ):
        return OFFICIAL_BASE
    return python_base().image(docker)


def local_name(name: str) -> str:
    """What Docker calls the image here; the nodes know it by its digest."""
    return f"trainwright.test/{name}:local"


def _build(docker: Engine, name: str, base: str) -> str:
    dockerfile, target = IMAGES[name]
    tag = local_name(name)
    base = local_name(EXTENDED[name]) if name in EXTENDED else base
    options = [f"--build-arg=BASE={base}", f"--tag={tag}", *([f"--target={target}"] if target else [])]
    with timed(f"building the {name} image"):
        docker.run("build", "--network=host", f"--file={paths.CHECKOUT / dockerfile}", *options, str(paths.CHECKOUT))
    return tag
