"""The registry that brings the project's images to the nodes: what has not changed of an image is not sent again.

It runs beside the nodes, under the name ``trainwright.test`` for them and a free port of loopback for Docker. What it
holds stays in the cache, so that the next cluster finds it.
"""

from __future__ import annotations

from cluster import paths, programs
from cluster.kind.archive import Image
from cluster.kind.engine import Engine
from cluster.kind.network import write
from cluster.say import timed

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
IMAGE = f"{DOMAIN}/registry:{programs.version(programs.module_of('registry'))}"


def start(docker: Engine, cluster: str) -> None:
    """Start the cluster's registry, where it does not run, on the cluster's network."""
    name = container(cluster)
    if docker.succeeds("container", "inspect", name):
        docker.run("start", name)
        return
    _load_image(docker)
    storage = paths.cache_dir() / "registry"
    storage.mkdir(parents=True, exist_ok=True)
    volume = f"--volume={storage}:/var/lib/registry"
    docker.run("run", "--detach", f"--name={name}", f"--net={cluster}", f"--publish=127.0.0.1::{PORT}", volume, IMAGE)


def remove(docker: Engine, cluster: str) -> None:
    """Remove the registry; what it held stays in the cache."""
    docker.succeeds("rm", "--force", "--volumes", container(cluster))


def container(cluster: str) -> str:
    """The name of the registry's container."""
    return f"{cluster}-registry"


def introduce(docker: Engine, cluster: str, nodes: list[str]) -> None:
    """Tell the nodes where images of ``trainwright.test`` come from."""
    server = f"http://{container(cluster)}:{PORT}"
    hosts = f'server = "{server}"\n[host."{server}"]\n  capabilities = ["pull", "resolve"]\n'
    for node in nodes:
        write(docker, node, f"/etc/containerd/certs.d/{DOMAIN}/hosts.toml", hosts)


def push(docker: Engine, cluster: str, image: str) -> str:
    """Push a local image; returns the name that the nodes know it by, whose tag is the image's own digest."""
    digest = docker.run("image", "inspect", "--format={{.Id}}", image).removeprefix("sha256:")[:12]
    path = f"{image.removeprefix(f'{DOMAIN}/').partition(':')[0]}:{digest}"
    port = docker.run("port", container(cluster), str(PORT)).splitlines()[0].rpartition(":")[2]
    local = f"127.0.0.1:{port}/{path}"
    docker.run("tag", image, local)
    with timed(f"bringing {path} to the registry"):
        docker.run("push", "--quiet", local)
    docker.run("rmi", local)
    return f"{DOMAIN}/{path}"


def _load_image(docker: Engine) -> None:
    if docker.succeeds("image", "inspect", IMAGE):
        return
    config = paths.cache_dir() / "registry.yml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(CONFIG)
    archive = paths.cache_dir() / "registry.tar"
    files = {"/usr/local/bin/registry": programs.program("registry"), "/etc/registry.yml": config}
    Image(IMAGE, files, ("registry", "serve", "/etc/registry.yml")).write(archive)
    docker.run("load", "--quiet", "--input", str(archive))
    archive.unlink()
