"""One run for a report: from its output folder, or from its job and the logs of its pods."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trainwright.contract import UserError
from trainwright_operator.api import manifest, mirror
from trainwright_operator.report.reading import StateReader, rows_of_file, rows_of_json_lines
from trainwright_operator.report.series import BUCKETS, Curves
from trainwright_operator.report.summary import Summary, summarize

STATE, ARGUMENTS, CARD, JOB = "trainer_state.json", "training_args.json", "README.md", "trainingjob.yaml"
ENVIRONMENT, SPEED = "logs/environment.json", "logs/speed.jsonl"
"""Written by ``trainwright run``: versions and machine, and the throughput at some steps."""
_SPEED = {
    "step": "step",
    "epoch": "epoch",
    "samples_per_second": "samplesPerSecond",
    "tokens_per_second": "tokensPerSecond",
}
_POD_LOG = re.compile(r"-0-(\d+)-0\.log$")
"""The log of the first pod of an attempt: slice 0, the attempt, index 0."""
_BULLET = re.compile(r"^- ([\w .+-]+): (.+)$")


@dataclass
class Run:
    """What a report shows of a run; unknown parts are empty.

    Attributes:
        arguments: The training arguments, by their names in Python.
        environment: Versions and sizes, such as of torch and of the world.
        facts: Further pairs of name and value.
        notes: What could not be read, one sentence each.
    """

    name: str
    source: str
    curves: Curves
    state: str = ""
    summary: Summary | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def holds_run(folder: Path) -> bool:
    return newest_state(folder) is not None or _job(folder) is not None or bool(_pod_logs(folder))


def read_folder(folder: Path, axis: str = "step", buckets: int = BUCKETS, now: datetime | None = None) -> Run:
    """The run whose output is ``folder``: of a TrainingJob, or of any script with a Hugging Face Trainer.

    Raises:
        UserError: the folder holds no run.
    """
    state, logs, job = newest_state(folder), _pod_logs(folder), _job(folder)
    if not holds_run(folder):
        raise UserError(f"{folder}: holds no run: neither {STATE}, nor a checkpoint, nor {JOB}, nor logs")
    run = Run(folder.resolve().name, str(folder), Curves(axis, buckets))
    if job is not None:
        _take_job(run, job, now or datetime.now().astimezone())
    if state is not None:
        _take_state(run, state)
    after = run.curves.end
    for log in logs:
        for row in rows_of_file(log):
            run.curves.add(row, after)
    with suppress(OSError):
        for row in rows_of_json_lines(folder / SPEED):
            run.curves.add(row)
    _take_arguments(run, folder, state)
    _take_card(run, folder)
    with suppress(OSError, ValueError):
        saved = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        run.environment |= {str(name): str(value) for name, value in saved.items()}
    return run


def read_job(job: dict[str, Any], rows: Iterable[Mapping[str, Any]], now: datetime, axis: str, buckets: int) -> Run:
    """The run of a job in a cluster; ``rows`` are those that rank 0 printed."""
    name = f"{job['metadata'].get('namespace', 'default')}/{job['metadata']['name']}"
    run = Run(job["metadata"]["name"], name, Curves(axis, buckets))
    _take_job(run, job, now)
    for row in rows:
        run.curves.add(row)
    return run


def speed_of(progress: Mapping[str, Any]) -> dict[str, Any]:
    """``status.progress`` as a row of a log with the throughput at its step, which no log has; empty if unknown."""
    row = {ours: progress[theirs] for ours, theirs in _SPEED.items() if theirs in progress}
    return row if len(row) > 2 and "step" in row else {}


def _take_job(run: Run, job: dict[str, Any], now: datetime) -> None:
    summary = summarize(job, now)
    run.name, run.state, run.summary = summary.name, summary.state, summary
    run.arguments = {mirror.snake(name): value for name, value in summary.arguments.items()}
    progress = summary.progress
    if progress.get("step") and progress.get("epoch"):
        run.curves.steps_per_epoch = progress["step"] / progress["epoch"]


def newest_state(folder: Path) -> Path | None:
    """The state of the output folder, or of its latest checkpoint; the newer one."""
    found = [path for path in (folder / STATE, *folder.glob(f"checkpoint-*/{STATE}")) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _pod_logs(folder: Path) -> list[Path]:
    """The logs of the first pod of each attempt, in order."""
    found = [(int(match[1]), path) for path in folder.glob("logs/*.log") if (match := _POD_LOG.search(path.name))]
    return [path for _, path in sorted(found)]


def _job(folder: Path) -> dict[str, Any] | None:
    path = folder / JOB
    with suppress(OSError, ValueError):
        for document in manifest.read(path.read_text(encoding="utf-8"), str(path)):
            content = document.content
            if isinstance(content, dict) and content.get("kind") == "TrainingJob" and "spec" in content:
                return content
    return None


def _take_state(run: Run, path: Path) -> None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            reader = StateReader(file)
            for row in reader.rows():
                run.curves.add(row)
    except OSError as error:
        run.notes.append(f"{path.name} could not be read: {error.strerror}")
        return
    if reader.torn:
        run.notes.append(f"{path.name} ends in the middle; {run.curves.rows} rows were read")
    fields = reader.fields
    steps, epoch = fields.get("global_step"), fields.get("epoch")
    if isinstance(steps, int) and isinstance(epoch, int | float) and epoch > 0:
        run.curves.steps_per_epoch = steps / epoch
    if steps is not None and "max_steps" in fields:
        run.facts["steps"] = f"{steps} of {fields['max_steps']}"
    if fields.get("best_metric") is not None:
        at = f" at step {fields['best_global_step']}" if fields.get("best_global_step") else ""
        run.facts["best"] = f"{fields['best_metric']:.5g}{at}"
    if fields.get("trial_name"):
        run.facts["trial"] = str(fields["trial_name"])


def _take_arguments(run: Run, folder: Path, state: Path | None) -> None:
    """The arguments as they were saved with the model or the checkpoint: with all defaults."""
    for place in (folder, *([state.parent] if state is not None else [])):
        with suppress(OSError, ValueError):
            read = json.loads((place / ARGUMENTS).read_text(encoding="utf-8"))
            if isinstance(read, dict):
                run.arguments = read
                return


def _take_card(run: Run, folder: Path) -> None:
    """Versions, and arguments if there are no others, from the model card that a Trainer wrote."""
    section = ""
    try:
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    has_arguments = bool(run.arguments)
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.strip("# ").lower()
        elif section == "framework versions" and line.startswith("- "):
            name, _, version = line[2:].rpartition(" ")
            run.environment[name.strip() or version] = version
        elif section == "training hyperparameters" and not has_arguments and (match := _BULLET.match(line)):
            run.arguments[match[1].strip()] = match[2].strip()
