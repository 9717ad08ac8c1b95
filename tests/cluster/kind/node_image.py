"""The image of a node, and the archives of the images that Kubernetes itself runs from: all of the stock programs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cluster import packages, paths, programs
from cluster.kind.archive import Image
from cluster.kind.engine import Engine
from cluster.kind.rootfs import RootFs
from cluster.kind.runtime import lacks_resource_capability, wrapper
from cluster.programs import program
from cluster.say import timed

HERE = Path(__file__).parent / "node"
PACKAGES = (
    "ca-certificates",
    "containernetworking-plugins",
    "ethtool",
    "iproute2",
    "isal",  # unpacks layers several times faster than containerd does by itself
    "kmod",
    "libseccomp2",
    "mount",
    "nftables",
    "procps",
    "socat",
)
BINARIES = ("kubelet", "kubeadm", "kubectl", "containerd", "containerd-shim-runc-v2", "ctr", "crictl")
BASE = RootFs("node-base", PACKAGES)
STORAGE_IMAGE = "trainwright.test/local-path-provisioner:local"
# kind applies what it finds there; the harness applies its own provisioner, to kind's official nodes too.
NO_STORAGE = "{apiVersion: v1, kind: Namespace, metadata: {name: local-path-storage}}\n"
BUSYBOX = Path("/bin/busybox")
LABEL = "dev.trainwright.node"
DOCKERFILE = f'FROM @BASE@\nCOPY root/ /\nLABEL {LABEL}=1\nENTRYPOINT ["/usr/local/bin/entrypoint"]\n'


def node_image(docker: Engine) -> str:
    """The node image's name; made where it is not there: Debian's packages, and our programs on top of them."""
    base, files = BASE.image(docker), _files()
    name = f"trainwright.test/node:{_digest(base, files)}"
    if not docker.succeeds("image", "inspect", name):
        with timed(f"making {name}"), paths.scratch() as context:
            _stage(context, base, files)
            docker.run("build", f"--tag={name}", str(context))
    return name


def is_ours(docker: Engine, image: str) -> bool:
    """Whether the image was made here, whatever it is called now."""
    return docker.run("image", "inspect", f'--format={{{{index .Config.Labels "{LABEL}"}}}}', image) == "1"


def archives(docker: Engine, node: str) -> Path:
    """The folder of archives: ``all/`` for every node, ``control-plane/`` for the one that runs it."""
    key = hashlib.sha256("\n".join([node, *map(str, map(program, programs.NODES))]).encode()).hexdigest()[:12]
    folder = paths.cache_dir() / "node-images" / key
    if not folder.exists():
        with timed("making the images of the control plane"):
            packages.ensure("busybox-static")
            _write_archives(docker, node, folder)
    return folder


def prune(docker: Engine, node: str) -> None:
    """Remove the archives that are neither of this node image nor under the nodes of a cluster."""
    current = archives(docker, node)
    used = paths.used_by_clusters()
    for folder in current.parent.iterdir():
        if folder != current and folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _files() -> dict[str, Path | str]:
    """What a node has besides Debian's packages, by its place there: files of this machine, or their text."""
    files: dict[str, Path | str] = {f"/usr/local/bin/{name}": program(name) for name in BINARIES}
    files |= {
        "/usr/local/bin/entrypoint": (HERE / "entrypoint").read_text(),
        "/etc/containerd/config.toml": (HERE / "containerd.toml").read_text().replace("@PAUSE@", _pause()),
        "/etc/crictl.yaml": "runtime-endpoint: unix:///run/containerd/containerd.sock\n",
        "/kind/version": programs.kubernetes_version(),
        "/kind/manifests/default-storage.yaml": NO_STORAGE,
        "/usr/local/sbin/runc": program("runc"),
    }
    if lacks_resource_capability():
        real = "/usr/local/sbin/runc.real"
        files |= {real: program("runc"), "/usr/local/sbin/runc": wrapper(real)}
    return files


def _digest(base: str, files: dict[str, Path | str]) -> str:
    """A program is known by its place in the cache, which its module's key is a part of."""
    return hashlib.sha256(
        f"{base} {DOCKERFILE} {sorted((target, str(what)) for target, what in files.items())}".encode()
    ).hexdigest()[:12]


def _stage(context: Path, base: str, files: dict[str, Path | str]) -> None:
    for target, what in files.items():
        path = context / "root" / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, Path):
            os.link(what, path)
        else:
            path.write_text(what)
            path.chmod(0o755)
    (context / "Dockerfile").write_text(DOCKERFILE.replace("@BASE@", base))


def _write_archives(docker: Engine, node: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with paths.scratch() as scratch:
        for where, images in _images(docker, node).items():
            (scratch / "made" / where).mkdir(parents=True)
            for image in images:
                image.write(scratch / "made" / where / f"{image.name.rpartition('/')[2].partition(':')[0]}.tar")
        (scratch / "made").rename(folder)


def _images(docker: Engine, node: str) -> dict[str, list[Image]]:
    names = {name.rpartition("/")[2].partition(":")[0]: name for name in _image_names()}
    static = [name for name in names if name.startswith("kube-") and name != "kube-proxy"]
    applets = {f"/bin/{applet}": "busybox" for applet in ("sh", "mkdir", "rm", "sleep")}
    return {
        "control-plane": [_single(names[name], name) for name in (*static, "etcd")],
        "all": [
            Image(names["kube-proxy"], {"/usr/local/bin/kube-proxy": program("kube-proxy")}, layer=_nft(docker, node)),
            Image(names["coredns"], {"/coredns": program("coredns")}, ("/coredns",)),
            Image(names["pause"], {"/bin/busybox": BUSYBOX}, ("/bin/busybox", "sleep", "2147483647")),
            Image(
                STORAGE_IMAGE,
                {
                    "/usr/local/bin/local-path-provisioner": program("local-path-provisioner"),
                    "/bin/busybox": BUSYBOX,
                },
                links=applets,
            ),
        ],
    }


def _single(image: str, name: str) -> Image:
    return Image(image, {f"/usr/local/bin/{name}": program(name)})


def _image_names() -> list[str]:
    version = f"--kubernetes-version={programs.kubernetes_version()}"
    command = [str(program("kubeadm")), "config", "images", "list", version]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def _pause() -> str:
    return next(name for name in _image_names() if "/pause:" in name)


def _nft(docker: Engine, node: str) -> bytes:
    """The one program that kube-proxy calls, with its libraries, as a layer."""
    command = "tar -C / -chf - usr/sbin/nft $(ldd /usr/sbin/nft | grep -o '/[^ ]*' | cut -c2-)"
    with tempfile.TemporaryFile() as file:
        docker.write_to(file, "run", "--rm", "--network=none", "--entrypoint=sh", node, "-c", command)
        file.seek(0)
        return file.read()
