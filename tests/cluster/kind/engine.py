"""The Docker that the nodes run in: the machine's own where one runs, else one that belongs to the harness alone.

The harness's Docker sets no firewall rule, no bridge and no forwarding on the machine: nodes talk to each other and
need nothing from outside. Its images stay in the cache from one cluster to the next; nothing else does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster import locks, packages, paths, programs
from cluster.kind.runtime import lacks_resource_capability, wrapper
from cluster.process import Daemon
from cluster.say import ClusterError, say

PACKAGES = ("docker.io",)
OWN, MACHINE = "own", "the machine's"
DEBIANS_CLIENT = "/usr/bin/docker"
CGROUP = "trainwright"
WATCHERS = Path("/proc/sys/fs/inotify/max_user_instances")
ENOUGH_WATCHERS = 1024
RECORD = "docker"
"""The file of a cluster's state folder that says which Docker it is in."""


@dataclass(frozen=True)
class Engine:
    """A Docker; ``own`` when the harness started it and has to stop it. ``host`` is empty for the machine's own."""

    client: str
    host: str = ""

    @property
    def own(self) -> bool:
        """Whether it is the harness's."""
        return bool(self.host)

    @property
    def environment(self) -> dict[str, str]:
        """For the client, and for kind, which calls ``docker`` by its name."""
        path = f"{Path(self.client).parent}:{os.environ.get('PATH', '')}"
        return {**os.environ, "PATH": path, "DOCKER_BUILDKIT": "1", **({"DOCKER_HOST": self.host} if self.own else {})}

    def run(self, *arguments: str, text: str | None = None) -> str:
        """One docker command; its output. ``text`` goes to its standard input."""
        done = self._call(arguments, text)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise ClusterError(f"`docker {' '.join(arguments[:3])} ...` failed: {last}")
        return done.stdout.strip()

    def succeeds(self, *arguments: str) -> bool:
        """Whether the docker command does what it should; it does not where no Docker is installed."""
        return shutil.which(self.client) is not None and self._call(arguments, None).returncode == 0

    def pipe(self, *arguments: str, stdin: IO[bytes] | None) -> subprocess.Popen[bytes]:
        """A docker command that reads bytes from ``stdin``, in the background."""
        return subprocess.Popen([self.client, *arguments], env=self.environment, stdin=stdin, stdout=subprocess.DEVNULL)

    def write_to(self, file: IO[bytes], *arguments: str) -> None:
        """A docker command that prints bytes, into ``file``."""
        subprocess.run([self.client, *arguments], env=self.environment, stdout=file, check=True)

    def _call(self, arguments: tuple[str, ...], text: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.client, *arguments],
            env=self.environment,
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def engine(cluster: Path) -> Engine:
    """The Docker of the cluster with this state folder: the one it was started in, should another one run by now.

    A new one is started in the Docker that answers, or else in the harness's, which need not run yet.
    """
    record = cluster / RECORD
    known = record.read_text() if record.exists() else ""
    client = shutil.which("docker") or ""
    wanted = bool(client) and known != OWN and not os.environ.get("TRAINWRIGHT_OWN_DOCKER")
    if wanted and (known == MACHINE or Engine(client).succeeds("info")):
        return Engine(client)
    return Engine(DEBIANS_CLIENT, f"unix://{_state() / 'docker.sock'}")


def start(docker: Engine, cluster: Path) -> None:
    """Start the harness's Docker where it is needed and does not run; remember which Docker the cluster is in."""
    if docker.own:
        if os.geteuid() != 0:
            raise ClusterError(f"{_no_docker()}, and only root can start one: start Docker, or run this as root")
        packages.ensure(*PACKAGES)
        with _alone():
            _start_own(docker)
    (cluster / RECORD).write_text(OWN if docker.own else MACHINE)


def stop_unused(docker: Engine, cluster: Path) -> None:
    """Stop the harness's Docker where no other cluster is in it or about to be; images stay in the cache.

    What it left goes with it: mounts, its cgroup, its socket, the raised limit.
    """
    if not docker.own or not _daemon().alive():
        return
    with _alone():
        others = [folder for folder in paths.clusters_dir().glob("*") if folder != cluster and _starting(folder)]
        if not others and not docker.run("ps", "--all", "--quiet"):
            _daemon().stop(grace=30)
            _remove_traces()
            _remove_cgroups()
            with contextlib.suppress(OSError):
                Path("/lib/modules").rmdir()  # kind mounts it into every node, and Docker makes it where there is none


def _starting(cluster: Path) -> bool:
    """Whether a command is at work on a kind cluster, which may have no container yet."""
    return (cluster / RECORD).exists() and locks.held(cluster)


def _alone() -> AbstractContextManager[None]:
    return locks.alone(paths.clusters_dir(), "waiting for another cluster's command on Docker")


def _no_docker() -> str:
    """Why none can be used: there is none, it does not run, or one may not use it."""
    client = shutil.which("docker")
    if not client:
        return "no Docker is installed"
    answer = subprocess.run([client, "version"], capture_output=True, text=True, check=False).stderr.strip()
    return f"no Docker answers ({answer.splitlines()[-1] if answer else 'it says nothing'})"


def _start_own(docker: Engine) -> None:
    daemon = _daemon()
    if not daemon.alive():
        say("starting a Docker for the tests alone")
        _end_orphans()
        _remove_traces()
        _state().mkdir(parents=True, exist_ok=True)
        runtime = _state() / "runc"
        runtime.write_text(wrapper(str(programs.program("runc"))))
        runtime.chmod(0o755)
        _raise_limit()
        daemon.start()
    daemon.wait_ready(lambda: docker.succeeds("info"), 60)
    _share_of_cpu()


def memory_mib(docker: Engine) -> float:
    """What the harness's Docker holds itself, nodes not counted."""
    from cluster.process import resident_mib

    pid = _daemon().pid()
    return resident_mib(pid) if docker.own and pid else 0.0


def _state() -> Path:
    return paths.clusters_dir().parent / "docker"


def _data() -> Path:
    return paths.cache_dir() / "docker"


def _daemon() -> Daemon:
    state = _state()
    flags = [
        f"--host=unix://{state / 'docker.sock'}",
        f"--data-root={_data()}",
        f"--exec-root={state / 'exec'}",
        f"--pidfile={state / 'dockerd.pid'}",
        f"--cgroup-parent={CGROUP}",
        "--storage-driver=overlay2",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--ip-masq=false",
    ]
    if lacks_resource_capability():
        flags += [f"--add-runtime=limited={state / 'runc'}", "--default-runtime=limited"]
    return Daemon("dockerd", ["/usr/sbin/dockerd", *flags], state)


def _raise_limit() -> None:
    """Kubelets, proxies and runtimes watch files, and the kernel's 128 watchers for a user are few for two clusters."""
    before = WATCHERS.read_text()
    if int(before) < ENOUGH_WATCHERS:
        (_state() / WATCHERS.name).write_text(before)
        WATCHERS.write_text(str(ENOUGH_WATCHERS))


def _lower_limit() -> None:
    before = _state() / WATCHERS.name
    if before.exists():
        WATCHERS.write_text(before.read_text())


def _share_of_cpu() -> None:
    """All nodes together are one group to the kernel: without this, they get as little as any one process outside."""
    for root, name, value in (("/sys/fs/cgroup/cpu", "cpu.shares", "8192"), ("/sys/fs/cgroup", "cpu.weight", "800")):
        if (Path(root) / "cgroup.procs").exists():  # version 1 has it in the first, version 2 in the second
            group = Path(root) / CGROUP
            group.mkdir(exist_ok=True)
            (group / name).write_text(value)


def _end_orphans() -> None:
    """A Docker that was killed leaves its nodes and their shims at work, and the next one does not know them."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            in_a_node = f":/{CGROUP}/" in (process / "cgroup").read_text()
            if in_a_node or os.fsencode(_state() / "exec") in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def _remove_traces() -> None:
    """Put back what a Docker of the harness changed on the machine, be it one that was killed."""
    _lower_limit()
    _unmount(_data())  # which Docker mounts over itself
    _unmount(_state())
    shutil.rmtree(_state(), ignore_errors=True)


def _unmount(folder: Path) -> None:
    """Unmount what is mounted at the folder and below it."""
    for mount in _mounts(folder):
        ctypes.CDLL(None).umount2(os.fsencode(mount), 2)  # MNT_DETACH


def _mounts(folder: Path) -> Iterator[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1] for line in lines]
    yield from sorted((point for point in points if f"{point}/".startswith(f"{folder}/")), reverse=True)


def _remove_cgroups() -> None:
    for root in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
        folders = sorted((path for path in root.glob("**/") if path.is_dir()), reverse=True)
        for folder in [*folders, root]:
            with contextlib.suppress(OSError):
                folder.rmdir()
