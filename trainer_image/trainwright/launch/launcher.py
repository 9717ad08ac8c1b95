"""PID 1 of every pod: starts the node's ranks by torch's elastic agent, and makes their end the pod's own.

``torchrun`` turns every exit code into 1 and kills what still runs 30 s after SIGTERM. The operator decides by exit
codes, and a checkpoint takes what the grace period allows; so this launcher passes the first failure's code on, lets
the ranks save for the grace period less 5 s, watches for hangs, reaps orphans, and leaves one line of why.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from trainwright import contract
from trainwright.contract import EndedBy, ExitCode, ResolvedJob, Termination, UserError
from trainwright.launch import nodefiles, reaper, runtime, verdict
from trainwright.launch.meeting import Herald
from trainwright.launch.rendezvous import Place, RendezvousFailed, Wait, wait_for_master
from trainwright.launch.supervisor import Overseer
from trainwright.launch.verdict import Failure
from trainwright.launch.watchdog import Watchdog

_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


def main() -> NoReturn:
    """Runs the job of this pod and exits with its code, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="trainwright-"))
    os.environ[contract.ENV_NODE_DIR] = str(folder)
    try:
        termination = launch(read_job(os.environ), Place.of(os.environ), folder)
    except UserError as error:
        termination = verdict.termination(Failure(error.exit_code, str(error)))
    except RendezvousFailed as error:
        termination = verdict.termination(Failure(1, str(error), by=EndedBy.LOST))
    finish(termination, folder)


def launch(job: ResolvedJob, place: Place, folder: Path) -> Termination:
    """Runs this node's part of the job to its end."""
    reaper.adopt_orphans()
    overseer = Overseer(folder, job.grace_period_seconds, Watchdog(job.hang_timeout_seconds))
    listen_for_stop(overseer)
    command = rank_command(job, folder)
    place = runtime.prepare(os.environ, place, job.attempt)
    herald = Herald(place, os.environ)
    wait = Wait(place, herald.waits)
    agent = meet(place, wait).run(place, f"{job.name}-{job.attempt}", command, overseer, herald, wait)
    end = overseer.result()
    overseer.sweep()
    del agent  # and with it the store, that node 0 keeps for the others
    return verdict.termination(end, nodefiles.read_report(folder), overseer.last_step())


def meet(place: Place, wait: Wait) -> Any:
    """Waits for the master's name while torch is imported; returns the module of the agent."""
    loading = threading.Thread(target=_load_agent, daemon=True)
    loading.start()
    if place.nodes > 1:
        wait_for_master(place, wait)
    loading.join()
    return importlib.import_module("trainwright.launch.agent")


def _load_agent() -> None:
    """Here, not in the ranks, the store warns with a C++ stack of a peer that left: which is said in words anyway."""
    given = os.environ.get(_LOG_LEVEL)
    os.environ[_LOG_LEVEL] = given or "ERROR"
    importlib.import_module("trainwright.launch.agent")
    if given is None:
        del os.environ[_LOG_LEVEL]


def read_job(environment: Mapping[str, str]) -> ResolvedJob:
    """The resolved job of this pod.

    Raises:
        UserError: it is not there, it cannot be read, or it is of another release.
    """
    path = environment.get(contract.ENV_JOB_FILE, contract.JOB_FILE)
    try:
        return ResolvedJob.from_json(Path(path).read_text())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"resolved job {path}: {error.strerror}; {contract.ENV_JOB_FILE} says where it is") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"resolved job {path}: cannot be understood ({error})") from None


def rank_command(job: ResolvedJob, folder: Path) -> list[str]:
    """What each rank runs, as arguments to Python: the declarative trainer, or the user's script under ``entry``."""
    if job.script is None:
        return ["-u", "-m", "trainwright.declarative"]
    arguments = job.script.get("args") or []
    runner = "trainwright.overlay" if job.overlay else "trainwright.launch.entry"
    return ["-u", "-m", runner, str(script_path(job.script, folder)), *arguments]


def script_path(script: Mapping[str, object], folder: Path) -> Path:
    """The file of a script: its inline text written to ``folder``, its own path, or the mounted key of a ConfigMap."""
    if isinstance(inline := script.get("inline"), str):
        path = folder / "script.py"
        path.write_text(inline)
        return path
    if isinstance(given := script.get("path"), str):
        return Path(given)
    if isinstance(config_map := script.get("configMap"), Mapping):
        return Path(contract.SCRIPT_DIR) / str(config_map["key"])
    raise UserError("script: needs one of inline, configMap or path")


def listen_for_stop(overseer: Overseer) -> None:
    """SIGTERM and SIGINT ask the overseer to stop; before any rank runs there is nothing to save, and it ends at once.

    The early end needs a thread: until the gang has met, the main one is inside a call that no handler interrupts.
    """

    def request(signum: int, frame: FrameType | None) -> None:
        overseer.stop_requested = True

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, request)
    threading.Thread(target=_end_early, args=(overseer, reader), name="early stop", daemon=True).start()


def _end_early(overseer: Overseer, reader: int) -> None:
    while signum := os.read(reader, 1):
        if signum[0] in (signal.SIGTERM, signal.SIGINT) and not overseer.starting:
            finish(verdict.termination(Failure(ExitCode.PREEMPTED, by=EndedBy.SIGNAL)), overseer.folder)


def finish(termination: Termination, folder: Path) -> NoReturn:
    """Leaves the termination message, repeats its error in the log, and ends the process."""
    if termination.error:
        print(f"trainwright: {termination.error}", file=sys.stderr)
    path = os.environ.get(contract.ENV_TERMINATION_FILE, contract.TERMINATION_FILE)
    try:
        Path(path).write_text(termination.to_json())
    except OSError as error:
        print(f"trainwright: cannot leave the termination message: {error}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(termination.exit_code)


if __name__ == "__main__":
    main()
