"""The image of a node, and the archives of the images that Kubernetes itself runs from: all of the stock programs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cluster import paths, programs
from cluster.kind.archive import Image
from cluster.kind.engine import Engine
from cluster.kind.rootfs import RootFs
from cluster.kind.runtime import lacks_resource_capability, write_wrapper
from cluster.programs import program
from cluster.say import timed

HERE = Path(__file__).parent / "node"
PACKAGES = (
    "ca-certificates",
    "containernetworking-plugins",
    "ethtool",
    "iproute2",
    "kmod",
    "libseccomp2",
    "mount",
    "nftables",
    "procps",
    "socat",
)
BINARIES = ("kubelet", "kubeadm", "kubectl", "containerd", "containerd-shim-runc-v2", "ctr", "crictl")
STORAGE_IMAGE = "trainwright.test/local-path-provisioner:local"
# kind applies what it finds there; the harness applies its own provisioner, to kind's official nodes too.
NO_STORAGE = "{apiVersion: v1, kind: Namespace, metadata: {name: local-path-storage}}\n"
BUSYBOX = Path("/bin/busybox")


def node_image(docker: Engine) -> str:
    """The node image's name; made where it is not there."""
    return _recipe().image(docker)


def archives(docker: Engine, node: str) -> Path:
    """The folder of archives: ``all/`` for every node, ``control-plane/`` for the one that runs it."""
    key = hashlib.sha256("\n".join([node, *map(str, map(program, programs.NODES))]).encode()).hexdigest()[:12]
    folder = paths.cache_dir() / "node-images" / key
    if not folder.exists():
        with timed("making the images of the control plane"):
            shutil.rmtree(folder.parent, ignore_errors=True)  # those of an older version
            _write_archives(docker, node, folder)
    return folder


def _recipe() -> RootFs:
    staged = paths.cache_dir() / "node"
    files = {
        HERE / "entrypoint": "/usr/local/bin/entrypoint",
        _staged(
            staged / "containerd.toml", (HERE / "containerd.toml").read_text().replace("@PAUSE@", _pause())
        ): "/etc/containerd/config.toml",
        _staged(staged / "version", programs.kubernetes_version()): "/kind/version",
        _staged(
            staged / "crictl.yaml", "runtime-endpoint: unix:///run/containerd/containerd.sock\n"
        ): "/etc/crictl.yaml",
        _staged(staged / "default-storage.yaml", NO_STORAGE): "/kind/manifests/default-storage.yaml",
        program("runc"): "/usr/local/sbin/runc.real",
        write_wrapper(staged / "runc", Path("/usr/local/sbin/runc.real")): "/usr/local/sbin/runc",
        **{program(name): f"/usr/local/bin/{name}" for name in BINARIES},
    }
    if not lacks_resource_capability():
        files = {source: target for source, target in files.items() if target != "/usr/local/sbin/runc"}
        files[program("runc")] = "/usr/local/sbin/runc"
    return RootFs("node", PACKAGES, tuple(files.items()), changes=('ENTRYPOINT ["/usr/local/bin/entrypoint"]',))


def _write_archives(docker: Engine, node: str, folder: Path) -> None:
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    for where, images in _images(docker, node).items():
        (making / where).mkdir(parents=True)
        for image in images:
            image.write(making / where / f"{image.name.rpartition('/')[2].partition(':')[0]}.tar")
    making.rename(folder)


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
    command = "tar -chf - /usr/sbin/nft $(ldd /usr/sbin/nft | grep -o '/[^ ]*')"
    with tempfile.TemporaryFile() as file:
        docker.write_to(file, "run", "--rm", "--network=none", "--entrypoint=sh", node, "-c", command)
        file.seek(0)
        return file.read()


def _staged(path: Path, text: str) -> Path:
    """A file of this content, written only when it differs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path
