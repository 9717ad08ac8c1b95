"""The operator's loop with processes instead of pods: observe, plan, execute, wait for the next event.

Nothing is decided here: the policy decides about restarts, backoff, deadline and the end of the job, with the same plan
as in a cluster. An interrupt acts as suspend: the policy stops the attempt, and the trainer saves a checkpoint first.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_JOB_FILE, ENV_PACKAGES_DIR, UserError
from trainwright_operator.api import names
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.events import Event
from trainwright_operator.core.observe import config_map_of, observe
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.pods import JOB_KEY
from trainwright_operator.core.policy import FINISHED, Phase
from trainwright_operator.core.status import merge_progress
from trainwright_operator.local.mounts import Mounts, resolved_job
from trainwright_operator.local.objects import Objects
from trainwright_operator.local.pod import Process, command_of, environment_of, local_variables
from trainwright_operator.local.progress import ProgressServer

Status = dict[str, Any]
Happening = Callable[[], None]
OnStatus = Callable[[Status, tuple[Event, ...]], None]


@dataclass(frozen=True)
class Setup:
    """The inputs of a run besides its job. ``scratch`` is a private folder that is deleted after the run."""

    pool: AcceleratorPool
    output: Path
    scratch: Path
    volumes: Mapping[str, Path]
    config_maps: Mapping[str, Path]
    packages: Path | None = None
    """The folder of the installed ``spec.script.requirements``, if the job has any."""


class Runner:
    """Runs one job to its end. ``stop`` may be called from a signal handler; a second call kills."""

    def __init__(self, job: TrainingJob, setup: Setup, on_status: OnStatus) -> None:
        self.job, self._setup, self._on_status = job, setup, on_status
        self._objects = Objects()
        self._happened: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._processes: dict[str, Process] = {}
        self._kill_at: dict[str, float] = {}
        self._config_maps: dict[str, str] = {}
        self._progress = ProgressServer(self._pushed, setup.scratch)
        self.interrupted = False

    @property
    def status(self) -> Status:
        return dict(self.job.status)

    def run(self) -> Status:
        """Returns the final status. Raises :class:`UserError` if a pod cannot be started here."""
        try:
            again = self._settle()
            while not self._over():
                self._wait(again)
                again = self._settle()
            return self.status
        finally:
            self._end()

    def stop(self) -> None:
        self._happened.put(self._kill_all if self.interrupted else self._suspend)
        self.interrupted = True

    # Planning

    def _settle(self) -> float | None:
        """Plan until nothing is left to do now; returns the seconds until the next plan."""
        while True:
            revision = self._objects.revision
            made = self._step()
            if made.requeue_after != 0 and not made.apply and revision == self._objects.revision:
                return made.requeue_after

    def _step(self) -> Plan:
        now = _now()
        observed = observe(self.job, self._objects.jobs.values(), self._objects.pods.values())
        made = plan(self.job, self._setup.pool, observed, now)
        self.job = replace(self.job, status=made.status)
        # There is no other node to prefer here.
        self._on_status(made.status, tuple(one for one in made.events if one.reason != names.Reason.NODE_AVOIDED))
        self._raise_if_stalled(made.status)
        self._execute(made, now)
        return made

    def _execute(self, made: Plan, now: datetime) -> None:
        self._config_maps |= {
            child["metadata"]["name"]: child["data"][JOB_KEY] for child in made.apply if child["kind"] == "ConfigMap"
        }
        self._objects.apply(made.apply, now)
        for deletion in made.delete:
            if deletion.kind == "Job":
                self._objects.delete_job(deletion.name, now)
        self._start_pods(now)
        for name in self._objects.sync(now):
            self._terminate(name)

    def _raise_if_stalled(self, status: Status) -> None:
        for one in status["conditions"]:
            if status["state"] == Phase.PENDING and one["type"] == names.Condition.STALLED and one["status"] == "True":
                raise UserError(one["message"])

    def _over(self) -> bool:
        return self.job.status["state"] in (*FINISHED, Phase.SUSPENDED) and not self._processes

    # Processes

    def _start_pods(self, now: datetime) -> None:
        pods = [pod for pod in self._objects.pods.values() if pod["status"]["phase"] == "Pending"]
        port = _free_port() if pods else 0
        launches = [(pod, self._environment(pod, port)) for pod in pods]
        for pod, environment in launches:
            name = pod["metadata"]["name"]
            log = self._setup.output / "logs" / f"{name}.log"
            self._processes[name] = Process(command_of(pod), environment, log, self._on_end(name))
            self._objects.started(name, now)

    def _environment(self, pod: Mapping[str, Any], port: int) -> dict[str, str]:
        setup, metadata = self._setup, pod["metadata"]
        mounts = Mounts.of(pod["spec"], setup.output, setup.volumes, setup.scratch)
        folder = setup.scratch / metadata["name"]
        folder.mkdir()
        (folder / JOB_KEY).write_text(resolved_job(self._resolved(pod), mounts, setup.config_maps))
        attempt = int(metadata["labels"][names.LABEL_ATTEMPT])
        ours = local_variables(folder / JOB_KEY, folder / "termination", port) | self._progress.variables(attempt)
        ours |= {ENV_PACKAGES_DIR: str(setup.packages)} if setup.packages else {}
        return environment_of(pod, mounts, os.environ, ours)

    def _resolved(self, pod: Mapping[str, Any]) -> str:
        """From the pod's annotation, or from the ConfigMap if it is too large for an annotation."""
        annotation = pod["metadata"]["annotations"].get(names.ANNOTATION_RESOLVED_JOB)
        return annotation if annotation is not None else self._config_maps[config_map_of(pod["spec"]) or ""]

    def _on_end(self, name: str) -> Callable[[int], None]:
        return lambda code: self._happened.put(lambda: self._ended(name, code))

    def _ended(self, name: str, code: int) -> None:
        process = self._processes.pop(name)
        self._kill_at.pop(name, None)
        _kill_left_overs(self._setup.scratch / name)
        if name in self._objects.pods:
            self._objects.ended(name, code, process.message(code), _now())

    def _terminate(self, name: str) -> None:
        if process := self._processes.get(name):
            process.stop()
            grace = self.job.spec.termination_grace_period_seconds
            self._kill_at[name] = time.monotonic() + grace

    def _kill(self, name: str) -> None:
        self._kill_at.pop(name, None)
        if process := self._processes.get(name):
            process.kill()
            _kill_left_overs(self._setup.scratch / name)

    # Events

    def _wait(self, again: float | None) -> None:
        """Wait for an event, a timer of the policy, or the end of a pod's grace period."""
        due = [at - time.monotonic() for at in self._kill_at.values()] + ([again] if again is not None else [])
        with suppress(queue.Empty):
            self._happened.get(timeout=max(0.0, min(due)) if due else None)()
            while True:
                self._happened.get_nowait()()
        for name in [name for name, at in self._kill_at.items() if at <= time.monotonic()]:
            self._kill(name)

    def _pushed(self, body: dict[str, Any]) -> None:
        """Called in threads of the endpoint."""

        def merge() -> None:
            self.job = replace(self.job, status=merge_progress(self.job.status, body, _now()))

        self._happened.put(merge)

    def _suspend(self) -> None:
        self.job = replace(self.job, spec=replace(self.job.spec, suspend=True))

    def _kill_all(self) -> None:
        for name in list(self._processes):
            self._kill(name)

    def _end(self) -> None:
        """Kill all processes, however the run ends."""
        self._kill_all()
        self._progress.close()


def _kill_left_overs(folder: Path) -> None:
    """Kill every process with the pod's job file in its environment, as the end of a container would."""
    mark = f"{ENV_JOB_FILE}={folder / JOB_KEY}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _now() -> datetime:
    return datetime.now().astimezone()
