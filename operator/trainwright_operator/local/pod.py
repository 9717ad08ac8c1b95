"""Runs one planned pod as a process tree on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, ENV_TERMINATION_FILE, UserError
from trainwright_operator.core.pods import HOME
from trainwright_operator.local.mounts import Mounts

Object = Mapping[str, Any]

LOG_TAIL_BYTES = 2048
_NOT_INHERITED = re.compile(r"PET_|TRAINWRIGHT_|KUBEFLOW_TRAINER_|TORCHELASTIC_|OMP_NUM_THREADS$|MASTER_(ADDR|PORT)$")
_RANK = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$")
_KEPT_FROM_MACHINE = {"HOME": HOME, "USER": "trainer"}
"""Variables that the plan sets for images without a home; here the machine's values are kept."""
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")


class Process:
    """A started pod. ``on_end`` is called in a separate thread with the exit code, as in a shell."""

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        on_end: Callable[[int], None],
    ) -> None:
        self.log = log
        self.termination_file = Path(environment[ENV_TERMINATION_FILE])
        wrapper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), str(os.getpid())]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*wrapper, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=self._wait, args=(on_end,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the pod's process group; ranks in other groups are killed later as orphans."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def message(self, exit_code: int) -> str:
        """The termination message; for a failed pod without one, the end of its log, as the kubelet does."""
        with suppress(OSError):
            if text := self.termination_file.read_text(errors="replace"):
                return text
        if exit_code == 0:
            return ""
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")
        return ""

    def _wait(self, on_end: Callable[[int], None]) -> None:
        code = self._process.wait()
        on_end(code if code >= 0 else 128 - code)


def command_of(pod: Object) -> list[str]:
    """The planned command, with this Python instead of the image's."""
    command = list(pod["spec"]["containers"][0]["command"])
    return [sys.executable, *command[1:]] if command[0] == "python" else command


def environment_of(
    pod: Object, mounts: Mounts, inherited: Mapping[str, str], ours: Mapping[str, str]
) -> dict[str, str]:
    """This machine's environment, overridden by the planned one with rewritten paths, overridden by ``ours``."""
    environment = {
        name: value for name, value in inherited.items() if not _NOT_INHERITED.match(name) and not _RANK.match(name)
    }
    for variable in pod["spec"]["containers"][0]["env"]:
        name, value = variable["name"], variable.get("value", "")
        if _KEPT_FROM_MACHINE.get(name) == value:
            continue
        if source := variable.get("valueFrom"):
            found = _from(name, source, pod, inherited)
            environment |= {} if found is None else {name: found}
        else:
            environment[name] = mounts.here(_expand(value, environment))
    return {**environment, ENV_OUTPUT_DIR: str(mounts.folders["/output"]), **ours}


def _from(name: str, source: Object, pod: Object, inherited: Mapping[str, str]) -> str | None:
    """A field of the pod; for a key of a Secret or ConfigMap this machine's variable of that name."""
    if field := source.get("fieldRef"):
        return _field(name, field["fieldPath"], pod)
    kind, reference = next(iter(source.items()))
    if name in inherited:
        return inherited[name]
    if reference.get("optional"):
        return None
    what = (
        f"key {reference['key']} of {kind.removesuffix('KeyRef')} {reference['name']}" if "key" in reference else kind
    )
    raise UserError(
        f"podTemplate.env: {name} comes from {what}, which does not exist here; set {name} in your environment"
    )


def _field(name: str, path: str, pod: Object) -> str:
    if match := re.fullmatch(r"metadata\.(annotations|labels)\['(.+)'\]", path):
        return str(pod["metadata"][match[1]].get(match[2], ""))
    known = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "spec.nodeName": "local",
        "status.podIP": "127.0.0.1",
        "status.hostIP": "127.0.0.1",
    }
    if path not in known:
        raise UserError(f"podTemplate.env: {name} asks for {path}, which only a pod in a cluster has")
    return str(known[path])


def _expand(value: str, environment: Mapping[str, str]) -> str:
    """Replaces ``$(NAME)`` by an earlier variable, as Kubernetes does; ``$$`` is a dollar sign."""
    return _REFERENCE.sub(
        lambda match: "$" if match[1] == "$" else environment.get(match[2], match[0]),
        value,
    )


def local_variables(job_file: Path, termination_file: Path, port: int) -> dict[str, str]:
    """The variables that differ on one machine: rendezvous on loopback, and other paths for the contract's files."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        ENV_JOB_FILE: str(job_file),
        ENV_TERMINATION_FILE: str(termination_file),
        **loopback,
    }
