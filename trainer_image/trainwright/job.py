"""The TrainingJob that this process belongs to: its description, its output folder, its arguments.

Standard library only, because the entry of a script uses this module before heavy imports.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, ENV_ROUND, ResolvedJob

logger = logging.getLogger(__name__)

_read: list[str] = []
"""The uid of the job whose arguments the script has read; empty until then."""
_trainings: list[str] = []
"""The output folders of the trainings of this process, in order."""


def resolved_job() -> ResolvedJob | None:
    """The TrainingJob that this process belongs to, if any."""
    path = os.environ.get(ENV_JOB_FILE)
    if path is None or not os.path.exists(path):
        return None
    return ResolvedJob.from_json(Path(path).read_text(encoding="utf-8"))


def current_round() -> int:
    """The round of the attempt that this process belongs to, from 1; more after its ranks were restarted in place."""
    text = os.environ.get(ENV_ROUND, "1")
    return int(text) if text.isdecimal() else 1


def in_output(folder: str) -> str:
    """Resolves a relative folder against the job's output, which outlives the pod; an absolute one is unchanged."""
    output = os.environ.get(ENV_OUTPUT_DIR)
    return os.path.join(output, folder) if output and not os.path.isabs(folder) else folder


def warn_if_ephemeral(folder: str) -> None:
    """Log a warning if a folder is on the pod's own disk."""
    place = os.path.abspath(folder)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    if place == "/" and "KUBERNETES_SERVICE_HOST" in os.environ and ENV_OUTPUT_DIR in os.environ:
        logger.warning(
            "output_dir: %s is on the pod's own disk and is lost with the pod; use a relative path, which is below %s, "
            "or mount a volume there (podTemplate.volumes)",
            folder,
            os.environ[ENV_OUTPUT_DIR],
        )


def stated_arguments() -> dict[str, Any]:
    """The ``spec.trainingArguments`` of the job and its output folder; empty outside of a job."""
    job = resolved_job()
    if job is None:
        return {}
    _read.append(job.uid)
    return {**job.training_arguments, "output_dir": os.environ.get(ENV_OUTPUT_DIR, "trainer_output")}


def warn_if_arguments_unread() -> None:
    """Warn, once and on rank 0, if the script has not read the arguments of its job."""
    job = None if _read or os.environ.get("RANK", "0") != "0" else resolved_job()
    if job is not None and job.script is not None and job.training_arguments:
        _read.append(job.uid)
        names = ", ".join(sorted(job.training_arguments)[:5])
        print(
            f"trainingArguments: the job sets {names}, but the script has not read them; create its arguments with "
            "TrainingArguments.from_job(), or remove them from the manifest",
            file=sys.stderr,
            flush=True,
        )


def first_training(folder: str) -> ResolvedJob | None:
    """The job of this process if its first training begins now, into ``folder``; None for a later training.

    A retry starts the script again, and its first ``train()`` resumes automatically. A second training in the same
    process may be meant to start from scratch, so it does not resume automatically.
    """
    _trainings.append(folder)
    return resolved_job() if len(_trainings) == 1 else None
