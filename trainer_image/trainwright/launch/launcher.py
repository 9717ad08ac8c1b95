"""PID 1 of every pod: starts the node's ranks with torch's elastic agent, and exits as they did.

``torchrun`` turns every exit code into 1 and kills remaining processes 30 s after SIGTERM. But the operator decides by
exit codes, and saving a checkpoint may need the whole grace period. So this launcher exits with the code of the first
failure, lets the ranks save until 5 s before the end of the grace period, detects hangs, reaps orphans, and reports the
reason in one line.
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
from trainwright.launch import nodefiles, preflight_round, reaper, runtime, verdict
from trainwright.launch.meeting import GangReporter
from trainwright.launch.rendezvous import Place, RendezvousFailed, Wait, wait_for_master
from trainwright.launch.rounds import Rounds
from trainwright.launch.supervisor import Stop, Supervisor
from trainwright.launch.verdict import Failure
from trainwright.launch.warm import NotWarm, WarmParent, forks
from trainwright.launch.watchdog import Watchdog

_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


def main() -> NoReturn:
    """Runs the job of this pod and exits with its code."""
    folder = Path(tempfile.mkdtemp(prefix="trainwright-"))
    try:
        termination = launch(read_job(os.environ), Place.of(os.environ), folder)
    except UserError as error:
        termination = verdict.termination(Failure(error.exit_code, str(error)))
    except RendezvousFailed as error:
        termination = verdict.termination(Failure(1, str(error), by=EndedBy.LOST))
    finish(termination, folder)


def launch(job: ResolvedJob, place: Place, folder: Path) -> Termination:
    """Runs this node's part of the job, in as many rounds as it takes; returns how it ended."""
    reaper.adopt_orphans()
    stop = Stop()
    install_stop_handlers(stop, folder)
    if job.requirements:
        runtime.import_packages(os.environ)
    command = rank_command(job, folder)
    place = runtime.prepare(os.environ, place, job.attempt)
    warm = _warm_parent(job, command)
    reporter = GangReporter(place, os.environ)
    wait = Wait(place, reporter.waiting)
    agent = import_agent(place, wait)
    gang = agent.GangRendezvous(place, f"{job.name}-{job.attempt}", reporter, wait)
    rounds = Rounds(place, os.environ, stop, reporter.rounds)
    if job.preflight is not None:
        end = preflight_round.check(job, place, gang, agent, folder, stop)
        if end.code != ExitCode.DONE:
            return verdict.termination(end)
    report: dict[str, Any] = {}
    while True:
        supervisor = _supervisor(job, folder, rounds, stop)
        agent.run(gang, place, command, supervisor, rounds.number, warm)
        report = nodefiles.read_report(supervisor.folder, report)
        if not rounds.go_on(supervisor, gang):
            break
    end = supervisor.result()
    supervisor.sweep()
    if warm is not None:
        warm.close()
    del gang  # closes the store, which node 0 keeps for the other nodes
    return verdict.termination(end, report, supervisor.last_step(), rounds.ended)


def _warm_parent(job: ResolvedJob, command: list[str]) -> WarmParent | None:
    """Starts the process to fork ranks from, if they are forked; it imports while the nodes meet."""
    try:
        return WarmParent(os.environ, command[command.index("-m") + 1]) if forks(job, os.environ) else None
    except NotWarm as reason:
        print(f"trainwright: startMethod: ranks are spawned, not forked: {reason}", file=sys.stderr, flush=True)
        return None


def _supervisor(job: ResolvedJob, folder: Path, rounds: Rounds, stop: Stop) -> Supervisor:
    """For the next round, with a folder of its own for what the ranks report."""
    own = nodefiles.new_round(folder, rounds.number)
    runtime.separate_flight_records(os.environ, job.attempt, rounds.number)
    return Supervisor(own, job.grace_period_seconds, Watchdog(job.hang_timeout_seconds), stop, rounds.restarts)


def import_agent(place: Place, wait: Wait) -> Any:
    """Imports the agent, and with it torch, while waiting for the master's name to resolve; returns the module."""
    loading = threading.Thread(target=_load_agent, daemon=True)
    loading.start()
    if place.nodes > 1:
        wait_for_master(place, wait)
    loading.join()
    return importlib.import_module("trainwright.launch.agent")


def _load_agent() -> None:
    """Silences the store's warning about a peer that left, a C++ stack: the launcher logs a readable line instead."""
    given = os.environ.get(_LOG_LEVEL)
    os.environ[_LOG_LEVEL] = given or "ERROR"
    importlib.import_module("trainwright.launch.agent")
    if given is None:
        del os.environ[_LOG_LEVEL]


def read_job(environment: Mapping[str, str]) -> ResolvedJob:
    """The resolved job of this pod.

    Raises:
        UserError: the file is missing, cannot be read, or was written by another release.
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
    """The command of each rank, as arguments to Python: the declarative trainer, or the user's script."""
    if job.script is None:
        return ["-u", "-m", "trainwright.declarative"]
    arguments = job.script.get("args") or []
    runner = "trainwright.overlay" if job.overlay else "trainwright.launch.entry"
    return ["-u", "-m", runner, str(script_path(job.script, folder)), *arguments]


def script_path(script: Mapping[str, object], folder: Path) -> Path:
    """The script's file: its inline text written to ``folder``, its ``path``, or the mounted key of a ConfigMap."""
    if isinstance(inline := script.get("inline"), str):
        path = folder / "script.py"
        path.write_text(inline)
        return path
    if isinstance(given := script.get("path"), str):
        return Path(given)
    if isinstance(config_map := script.get("configMap"), Mapping):
        return Path(contract.SCRIPT_DIR) / str(config_map["key"])
    raise UserError("script: needs one of inline, configMap or path")


def install_stop_handlers(stop: Stop, folder: Path) -> None:
    """SIGTERM and SIGINT request a stop. Before any rank runs, they end the process at once.

    The early end needs a thread, because until the gang has met the main thread is in a call that no signal interrupts.
    """

    def request(signum: int, frame: FrameType | None) -> None:
        stop.requested = True

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, request)
    threading.Thread(target=_end_early, args=(stop, folder, reader), name="early stop", daemon=True).start()


def _end_early(stop: Stop, folder: Path, reader: int) -> None:
    while signum := os.read(reader, 1):
        if signum[0] in (signal.SIGTERM, signal.SIGINT) and stop.early:
            finish(verdict.termination(Failure(ExitCode.PREEMPTED, by=EndedBy.SIGNAL)), folder)


def finish(termination: Termination, folder: Path) -> NoReturn:
    """Writes the termination message, logs its error, and ends the process."""
    if termination.error:
        print(f"trainwright: {termination.error}", file=sys.stderr)
    path = os.environ.get(contract.ENV_TERMINATION_FILE, contract.TERMINATION_FILE)
    try:
        Path(path).write_text(termination.to_json())
    except OSError as error:
        print(f"trainwright: cannot write the termination message: {error}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(termination.exit_code)


if __name__ == "__main__":
    main()
