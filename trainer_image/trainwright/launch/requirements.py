"""Installs ``spec.script.requirements`` before the launcher starts: the main process of an init container.

Packages that the image has keep their version unless the list names them, so that a dependency never replaces torch.
The wheels are kept below the job's output: later attempts start without a network, with the same versions. Standard
library and pip only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from trainwright import contract
from trainwright.contract import EndedBy, ExitCode, UserError
from trainwright.launch import launcher, verdict
from trainwright.launch.verdict import Failure

CACHE = Path(".trainwright") / "packages"
"""In the job's output: a folder of wheels for each list of requirements and image."""
ABANDONED_SECONDS = 3600
RESOLVE_SECONDS = 180.0
"""pip may search for hours when no versions fit together; exact versions are found within seconds."""
FIELD = "spec.script.requirements"

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNREACHABLE = re.compile(
    r"Retrying \(Retry\(|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError"
    r"|\b(401|403|5\d\d) (Client|Server) Error"
)
_NOT_FOUND = re.compile(r"No matching distribution found for (.+)")
_VERSIONS = re.compile(r"\(from versions: (.*)\)")
_CONFLICT = re.compile(r"^\s+(.+ depends on .+|The user requested .+)$", re.M)


class InstallError(RuntimeError):
    """The packages could not be installed now, but a retry may succeed."""


def main() -> NoReturn:
    """Installs the packages of this pod's job into the folder for them, and exits as the launcher would."""
    folder = Path(tempfile.mkdtemp(prefix="trainwright-"))
    pip = Pip(os.environ)
    _stop_on_signals(pip)
    try:
        job = launcher.read_job(os.environ)
        output = Path(os.environ.get(contract.ENV_OUTPUT_DIR, contract.OUTPUT_DIR))
        wheels = cached(output / CACHE, job.requirements, lambda made: pip.fetch(job.requirements, made))
        pip.unpack(wheels, Path(os.environ[contract.ENV_PACKAGES_DIR]))
        end = Failure(ExitCode.DONE)
    except Stopped:
        end = Failure(ExitCode.PREEMPTED, by=EndedBy.SIGNAL)
    except UserError as error:
        end = Failure(error.exit_code, str(error))
    except (InstallError, OSError) as error:
        end = Failure(1, f"{FIELD}: {error}")
    launcher.finish(verdict.termination(end), folder)


def install_here(requirements: Sequence[str], cache: Path, environment: Mapping[str, str], log: Path) -> Path:
    """The folder in ``cache`` with the installed packages; installs them unless an earlier run did.

    Raises:
        UserError: a package cannot be found or installed.
    """

    def install(made: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="trainwright-") as wheels, log.open("w") as out:
            pip = Pip(environment, out)
            pip.fetch(requirements, Path(wheels))
            pip.unpack(Path(wheels), made)

    try:
        return cached(cache, requirements, install)
    except (InstallError, OSError) as error:
        raise UserError(f"{FIELD}: {error}") from None


def cached(cache: Path, requirements: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The folder in ``cache`` for these requirements; ``make`` fills it if it does not exist.

    It gets its name only when it is complete: a process that was killed, or another pod, leaves no half of one.
    """
    folder = cache / key(requirements)
    if folder.is_dir():
        print(f"requirements: found in {folder}", flush=True)
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache)
    made = Path(tempfile.mkdtemp(prefix=f".{socket.gethostname()}-", dir=cache))
    try:
        make(made)
        made.chmod(0o755)
        with suppress(OSError):  # another pod was faster
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def key(requirements: Sequence[str]) -> str:
    """Changes with the requirements, the interpreter and the packages of the image."""
    wanted = sorted("".join(one.split()).lower() for one in requirements)
    text = json.dumps([wanted, sys.implementation.cache_tag, sys.platform, os.uname().machine, _installed()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def constraints(requirements: Sequence[str]) -> list[str]:
    """What must keep its version: each package that is installed and that the list does not name."""
    named = {_normal(match[0]) for one in requirements if (match := _NAME.match(one.strip()))}
    return [f"{name}=={version}" for name, version in _installed() if name not in named]


class Stopped(Exception):
    """The pod was asked to end."""


class Pip:
    """Runs pip with the settings of ``environment``; its output is logged while it runs."""

    def __init__(self, environment: Mapping[str, str], log: Any = None) -> None:
        # pip resolves first and fetches then: without its cache it would download everything twice.
        self._environment = {k: v for k, v in environment.items() if k not in ("PIP_NO_CACHE_DIR", "PYTHONPATH")}
        self._log = log or sys.stdout
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def fetch(self, requirements: Sequence[str], folder: Path) -> None:
        """Writes a wheel of each package that the image lacks into ``folder``.

        Raises:
            UserError: the list cannot be installed in this image.
            InstallError: the index cannot be reached, or pip failed for another reason.
        """
        with tempfile.TemporaryDirectory(prefix="trainwright-") as scratch:
            kept, report = Path(scratch) / "constraints.txt", Path(scratch) / "report.json"
            kept.write_text("\n".join(constraints(requirements)))
            resolve = ("install", "--dry-run", f"--report={report}", f"--constraint={kept}", *requirements)
            self._run(*resolve, seconds=RESOLVE_SECONDS)
            found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
        pins = [f"{one['name']}=={one['version']}" for one in found]
        if pins:
            self._run("wheel", "--no-deps", f"--wheel-dir={folder}", *pins)

    def unpack(self, wheels: Path, target: Path) -> None:
        """Installs all ``wheels`` into ``target``, which then is a folder for ``PYTHONPATH``."""
        target.mkdir(parents=True, exist_ok=True)
        files = sorted(map(str, wheels.glob("*.whl")))
        if files:
            self._run("install", "--no-index", "--no-deps", "--upgrade", f"--target={target}", *files)

    def stop(self) -> None:
        """May be called from a signal handler; the current or the next call of pip raises :class:`Stopped`."""
        self._stopped = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _run(self, *arguments: str, seconds: float | None = None) -> None:
        self._process = subprocess.Popen(
            [*_PIP, arguments[0], "--progress-bar=off", *arguments[1:]],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(seconds or 0, end)
        if seconds is not None:
            timer.start()
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            self._log.write(line)
            self._log.flush()
        failed = self._process.wait()
        timer.cancel()
        if self._stopped:
            raise Stopped
        if late.is_set():
            raise UserError(f"{FIELD}: pip found no versions that fit within {seconds:.0f} s; give exact versions")
        if failed:
            raise problem("".join(lines), self._environment)


def problem(output: str, environment: Mapping[str, str]) -> Exception:
    """The error for the output of a pip that failed, in one line."""
    offline = environment.get("PIP_NO_INDEX", "") not in ("", "0", "false")
    source = "PIP_FIND_LINKS" if offline else "the package index"
    if "No module named pip" in output:
        return UserError(f"{FIELD}: this Python has no pip; install it, or install the packages by hand")
    if _UNREACHABLE.search(output) and not offline:
        return InstallError(
            "the package index cannot be reached; set PIP_INDEX_URL to one that can be, or PIP_NO_INDEX and "
            "PIP_FIND_LINKS to a folder of wheels, in podTemplate.env"
        )
    if missing := _NOT_FOUND.search(output):
        versions = _VERSIONS.search(output)
        known = [one for one in (versions[1].split(", ") if versions else []) if one not in ("", "none")]
        there = f"; the newest version that fits this Python is {known[-1]}" if known else ""
        return UserError(f"{FIELD}: {missing[1].strip()} is not in {source}{there}; correct its name or version")
    if conflicts := list(dict.fromkeys(_CONFLICT.findall(output))):
        why = "; ".join(
            one.strip().replace("The user requested (constraint)", "the image has") for one in conflicts[:4]
        )
        return UserError(f"{FIELD}: these packages do not fit together: {why}; change the list, or build an image")
    last = [line.strip() for line in output.splitlines() if re.match(r"\s*(ERROR|error):", line)]
    said = re.sub(r"^(ERROR|error): *", "", last[0]) if last else "pip failed; see its log"
    return InstallError(said)


def _installed() -> list[tuple[str, str]]:
    found = {_normal(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}
    return sorted(found.items())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _remove_abandoned(cache: Path) -> None:
    for folder in cache.glob(".*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _stop_on_signals(pip: Pip) -> None:
    """The main process of a container must handle SIGTERM itself: by default the kernel ignores it."""

    def stop(signum: int, frame: FrameType | None) -> None:
        pip.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)


if __name__ == "__main__":
    main()
