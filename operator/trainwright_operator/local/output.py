"""The files of a run in its output folder, besides the model: the TrainingJob with its status, and a lock.

A later run of the same job with the same output continues from there. It has the same uid, so that it owns the
checkpoints, and continues the attempt numbers, so that a leftover process of the previous run cannot overwrite files.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trainwright.contract import UserError
from trainwright_operator.api import crd, manifest
from trainwright_operator.api.manifest import Document
from trainwright_operator.api.names import Reason
from trainwright_operator.core.history import Outcome
from trainwright_operator.core.policy import Phase
from trainwright_operator.core.times import write_time
from trainwright_operator.report.run import ENVIRONMENT, SPEED, speed_of

Object = dict[str, Any]

FILE = "trainingjob.yaml"
SPEED_SECONDS = 5.0
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "trainwright")
_NAMESPACE = uuid.UUID("6f1f5f0e-63f5-4b0e-8d5e-7d2f3a3f5a11")
_KEPT = ("progress", "metrics", "memory", "best", "checkpoint", "anomalies")


class OutputFolder:
    """The output folder of one run, locked while it is open. Use it as a context manager."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._lock: int | None = None
        self._noted, self._note_at = -1, 0.0

    def __enter__(self) -> OutputFolder:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "logs").mkdir(exist_ok=True)
            self._lock = os.open(self.output / "logs" / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"--output {self.output}: cannot be written to: {error.strerror}") from None
        self._take_lock(self._lock)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _take_lock(self, lock: int) -> None:
        import fcntl

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--output {self.output}: another run is writing there; choose another folder") from None

    def prior(self) -> Object | None:
        """The TrainingJob of the previous run; None if there was none or its file is incomplete."""
        path = self.output / FILE
        with contextlib.suppress(OSError, ValueError):
            for document in manifest.read(path.read_text(), str(path)):
                if isinstance(document.content, dict) and "spec" in document.content:
                    return document.content
        return None

    def save(self, content: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Write atomically: if the run is killed while writing, the old file remains."""
        temporary = self.output / f".{FILE}.new"
        temporary.write_text(manifest.write({**content, "status": dict(status)}))
        temporary.replace(self.output / FILE)

    def save_environment(self, pool: str) -> None:
        """Write what the pods run on here, for a report; an earlier run's is replaced."""
        (self.output / ENVIRONMENT).write_text(json.dumps(environment(pool), indent=1) + "\n")

    def note_speed(self, progress: Mapping[str, Any]) -> None:
        """Append the speed at a step to a file for a report, at most every :data:`SPEED_SECONDS`: no log has it."""
        row = speed_of(progress)
        if not row or row["step"] == self._noted or time.monotonic() < self._note_at:
            return
        self._noted, self._note_at = row["step"], time.monotonic() + SPEED_SECONDS
        with contextlib.suppress(OSError), (self.output / SPEED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def holds_checkpoints(self) -> bool:
        return any(self.output.glob("checkpoint-*"))


def environment(pool: str) -> dict[str, str]:
    """Versions of this Python and its packages, and this machine."""
    found = {"pool": pool, "Python": platform.python_version(), "system": platform.platform(terse=True)}
    found |= {"machine": platform.machine(), "cores": str(os.cpu_count())}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def uid_of(job: Object, prior: Object | None, output: Path) -> str:
    """The uid is the same for every run of a job with the same output, even if the folder was moved."""
    metadata = job["metadata"]
    same = prior and prior["metadata"].get("name", metadata["name"]) == metadata["name"]
    if prior and same and (uid := prior["metadata"].get("uid")):
        return str(uid)
    return str(uuid.uuid5(_NAMESPACE, f"{metadata.get('namespace', 'default')}/{metadata['name']}@{output.resolve()}"))


def status_to_continue(document: Document, prior: Object | None, folder: OutputFolder, now: datetime) -> Object:
    """The status that a new run begins with; empty for the first, also if it continues from another job's checkpoints.

    Raises:
        UserError: the output belongs to another job that is not adopted, or to a run of this job with a different spec.
    """
    if prior is None:
        return {}
    name, before = document.content["metadata"]["name"], prior["metadata"]["name"]
    if name != before:
        if document.content["spec"]["output"].get("adopt"):
            return {}
        raise UserError(
            f"--output {folder.output}: holds the run of {before}; choose another folder for {name}, or set "
            "spec.output.adopt: true to continue from its checkpoints"
        )
    status = prior.get("status") or {}
    finished = status.get("state") == Phase.SUCCEEDED
    if finished or folder.holds_checkpoints():
        _check_unchanged(document, prior, folder)
    return dict(status) if finished else _again(status, now)


def _check_unchanged(document: Document, prior: Object, folder: OutputFolder) -> None:
    problems = crd.change_problems(document.content, prior)
    if problems:
        first = problems[0]
        raise UserError(
            f"{document.place(first.path)}: {first}; {folder.output} holds the result of the previous run: "
            "choose another --output to keep both"
        )


def _again(status: Mapping[str, Any], now: datetime) -> Object:
    """Continues a run that did not succeed: resets the count of restarts, and continues the attempt numbers."""
    attempts = status.get("attempts") or []
    if not attempts:
        return {}
    last = {key: attempts[-1][key] for key in ("attempt", "startTime", "step") if key in attempts[-1]}
    stopped = {
        **last,
        "endTime": attempts[-1].get("endTime", write_time(now)),
        "outcome": Outcome.STOPPED.value,
        "reason": Reason.SUSPENDED,
    }
    return {**{key: status[key] for key in _KEPT if key in status}, "attempts": [stopped]}
