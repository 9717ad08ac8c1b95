"""The project's own images: built by BuildKit from the Dockerfiles that users get."""

from __future__ import annotations

from cluster import paths
from cluster.kind.engine import Engine
from cluster.kind.rootfs import python_base
from cluster.say import timed

OFFICIAL_BASE = "python:3.13-slim"
IMAGES = {"trainer": ("trainer_image/Dockerfile", "cpu"), "operator": ("operator/Dockerfile", "")}


def build(docker: Engine) -> dict[str, str]:
    """Build both images where something of them changed; their local names by ``trainer`` and ``operator``."""
    base = base_image(docker)
    return {name: _build(docker, name, base) for name in IMAGES}


def base_image(docker: Engine) -> str:
    """The official Python image where Docker has it or can pull it, else one of the same shape."""
    if not docker.own and (
        docker.succeeds("image", "inspect", OFFICIAL_BASE) or docker.succeeds("pull", OFFICIAL_BASE)
    ):
        return OFFICIAL_BASE
    return python_base().image(docker)


def _build(docker: Engine, name: str, base: str) -> str:
    dockerfile, target = IMAGES[name]
    tag = f"trainwright.test/{name}:local"
    options = [f"--build-arg=BASE={base}", f"--tag={tag}", *([f"--target={target}"] if target else [])]
    with timed(f"building the {name} image"):
        docker.run("build", "--network=host", f"--file={paths.CHECKOUT / dockerfile}", *options, str(paths.CHECKOUT))
    return tag
