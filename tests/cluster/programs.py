"""The stock programs of a Kubernetes cluster, built from the Go module registry at pinned versions.

Each module has a go.mod of its own in ``tools/``: programs that share one can silently downgrade each other. A program
is built once into the cache, in a folder keyed by everything that decides its bytes, and gets its final name only
after its own build information shows the pinned version: what is there is whole, and an interrupted build goes on where
it was. This file needs nothing but the standard library, so that building can start before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from cluster import locks, packages
from cluster.paths import HERE, cache_dir
from cluster.say import ClusterError, timed

TOOLS = HERE / "tools"
UNUSED_SECONDS = 14 * 24 * 3600


@dataclass(frozen=True)
class Module:
    """A Go module and the programs taken from it, each by its import path; ``folder`` is the one in ``tools/``."""

    folder: str
    path: str
    programs: dict[str, str]
    tags: str = ""
    cgo: bool = False
    debian: tuple[str, ...] = ()
    """Debian packages that it is compiled with."""
    version_variables: dict[str, str] = field(default_factory=dict)
    """Variables that the linker sets, of the version's full text, major and minor number."""


_K8S = "k8s.io/kubernetes/cmd"
_BASE = "k8s.io/component-base/version"

# In the order in which they are built: what brings our images to the nodes comes first, as that needs no Kubernetes.
MODULES = [
    Module("kind", "sigs.k8s.io/kind", {"kind": "sigs.k8s.io/kind"}),
    Module(
        "runc",
        "github.com/opencontainers/runc",
        {"runc": "github.com/opencontainers/runc"},
        tags="seccomp",
        cgo=True,
        debian=("gcc", "libc6-dev", "libseccomp-dev", "pkg-config"),
    ),
    Module(
        "registry",
        "github.com/distribution/distribution/v3",
        {"registry": "github.com/distribution/distribution/v3/cmd/registry"},
    ),
    Module("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module(
        "kubernetes",
        "k8s.io/kubernetes",
        {
            name: f"{_K8S}/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
                "kubelet",
                "kubeadm",
                "kube-proxy",
            )
        },
        version_variables={
            f"{_BASE}.gitVersion": "{version}",
            f"{_BASE}.gitMajor": "{major}",
            f"{_BASE}.gitMinor": "{minor}",
        },
    ),
    Module("kwok", "sigs.k8s.io/kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    Module(
        "containerd",
        "github.com/containerd/containerd/v2",
        {
            name: f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        },
        tags="no_btrfs no_devmapper no_zfs",
        version_variables={"github.com/containerd/containerd/v2/version.Version": "{version}"},
    ),
    Module("coredns", "github.com/coredns/coredns", {"coredns": "github.com/coredns/coredns"}),
    Module("cri-tools", "sigs.k8s.io/cri-tools", {"crictl": "sigs.k8s.io/cri-tools/cmd/crictl"}),
    Module(
        "local-path-provisioner",
        "github.com/rancher/local-path-provisioner",
        {"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
        version_variables={"main.VERSION": "{version}"},
    ),
    Module("helm", "helm.sh/helm/v4", {"helm": "helm.sh/helm/v4/cmd/helm"}),
    Module("vegeta", "github.com/tsenart/vegeta/v12", {"vegeta": "github.com/tsenart/vegeta/v12"}),
    Module("kueue", "sigs.k8s.io/kueue", {"kueue": "sigs.k8s.io/kueue/cmd/kueue"}),
    Module("kueue-0.17", "sigs.k8s.io/kueue", {"kueue-0.17": "sigs.k8s.io/kueue/cmd/kueue"}),
    Module("actionlint", "github.com/rhysd/actionlint", {"actionlint": "github.com/rhysd/actionlint/cmd/actionlint"}),
]
_MODULE_OF = {program: module for module in MODULES for program in module.programs}

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok")
APART = ("kueue-0.17",)
"""Built only where a target names them."""
_OFF_NODES = {"etcd", "kwok", "helm", "vegeta", "kueue", "actionlint", *APART}
NODES = (*(p for p in _MODULE_OF if p not in _OFF_NODES), "etcd")
ALL = tuple(p for p in _MODULE_OF if p not in APART)


def module_of(name: str) -> Module:
    """The module that a program comes from."""
    return _MODULE_OF[name]


def version(module: Module) -> str:
    """The version that the module's go.mod pins, as in ``v1.37.2``."""
    text = (TOOLS / module.folder / "go.mod").read_text()
    found = re.search(rf"^(?:require|)\s*{re.escape(module.path)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise ClusterError(f"tools/{module.folder}/go.mod does not require {module.path}")
    return found[1]


def kubernetes_version() -> str:
    """The version of Kubernetes that the cluster runs, as in ``v1.37.2``."""
    return version(_MODULE_OF["kubelet"])


def program(name: str) -> Path:
    """Where the program is or will be."""
    return _folder(_MODULE_OF[name]) / name


def missing(names: tuple[str, ...]) -> list[str]:
    """The programs that are not built yet."""
    return [name for name in names if not program(name).exists()]


def source(folder: str, *module: str) -> Path:
    """The files of ``module``, or of the one that ``tools/<folder>`` requires, downloaded by Go if necessary."""
    go = shutil.which("go")
    if go is None:
        raise ClusterError("Go is needed to fetch modules and is not on PATH: install Go 1.26 or newer")
    command = [go, "mod", "download", "-json", *module]
    done = subprocess.run(command, cwd=TOOLS / folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"go mod download of tools/{folder} failed:\n{_last_lines(done.stderr or done.stdout)}")
    return Path(json.loads(done.stdout)["Dir"])


def build(names: tuple[str, ...] = ALL) -> None:
    """Build what is missing, one module after another, in the order of the table."""
    for module in MODULES:
        wanted = [name for name in names if name in module.programs]
        if wanted and missing(tuple(wanted)):
            _build_module(module, wanted)
        if wanted:
            os.utime(_folder(module))
    _prune()


def _prune() -> None:
    """Remove what an older go.mod made and no checkout of this user has asked for in two weeks."""
    current = {_folder(module) for module in MODULES}
    for folder in (cache_dir() / "programs").iterdir():
        if folder not in current and time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def _build_module(module: Module, names: list[str]) -> None:
    go = shutil.which("go")
    if go is None:
        raise ClusterError("Go is needed to build Kubernetes and is not on PATH: install Go 1.26 or newer")
    with _lock(module):
        names = missing(tuple(names))  # another build may have made them while this one waited
        if names:
            packages.ensure(*module.debian)
            with timed(f"building {', '.join(names)} {version(module)}"):
                _compile(go, module, names)


def _compile(go: str, module: Module, names: list[str]) -> None:
    folder = _folder(module)
    for left in folder.glob(".building-*"):  # by a build that was killed: this one holds the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
        _go_build(go, module, Path(scratch), [module.programs[name] for name in names])
        for name in names:
            made = Path(scratch) / _output_name(module.programs[name])
            _verify(go, module, made)
            made.rename(folder / name)


def _go_build(go: str, module: Module, out: Path, packages: list[str]) -> None:
    flags = ["-trimpath", "-tags", module.tags, "-ldflags", _linker_flags(module), "-o", f"{out}/"]
    environment = {
        **os.environ,
        "CGO_ENABLED": "1" if module.cgo else "0",
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
    }
    done = subprocess.run(
        ["nice", "-n", "10", go, "build", *flags, *packages],
        cwd=TOOLS / module.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"go build of tools/{module.folder} failed:\n{_last_lines(done.stdout)}")


def _linker_flags(module: Module) -> str:
    pinned = version(module)
    major, minor = pinned.lstrip("v").split(".")[:2]
    values = {
        name: text.format(version=pinned, major=major, minor=minor) for name, text in module.version_variables.items()
    }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())])


def _verify(go: str, module: Module, binary: Path) -> None:
    """A version that does not fit can make Go choose a much older one, with no error: ask the binary what it is."""
    text = subprocess.run([go, "version", "-m", str(binary)], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"^\t(?:mod|dep)\t{re.escape(module.path)}\t(\S+)", text, re.MULTILINE)
    if found is None or found[1] != version(module):
        built = found[1] if found else "no version"
        raise ClusterError(f"{binary.name} was built from {built} of {module.path}, and {version(module)} is pinned")


def _output_name(package: str) -> str:
    """The file name that `go build` gives a package's program: the last element that is not a major version."""
    elements = package.split("/")
    return elements[-2] if re.fullmatch(r"v\d+", elements[-1]) else elements[-1]


def _folder(module: Module) -> Path:
    return cache_dir() / "programs" / f"{module.folder}-{_key(module)}"


def _key(module: Module) -> str:
    digest = hashlib.sha256(f"{module.tags} {module.cgo} {_linker_flags(module)}".encode())
    for file in ("go.mod", "go.sum"):
        digest.update((TOOLS / module.folder / file).read_bytes())
    return digest.hexdigest()[:12]


def _lock(module: Module) -> AbstractContextManager[None]:
    """Two builds at once would do the same work."""
    return locks.alone(_folder(module), f"waiting for {module.folder}, which is being built already")


def _last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
