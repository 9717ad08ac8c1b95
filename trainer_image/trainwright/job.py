"""What a process of a TrainingJob has of it: the job itself, a place for what is relative, its arguments, a start.

Standard library only: a script's entry asks here before anything heavy is imported.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, ResolvedJob

logger = logging.getLogger(__name__)

_read: list[str] = []
"""The uid of the job whose arguments the script has asked for; empty until then."""
_begun: list[str] = []
"""The output folders that this process has trained into, in their order."""


def resolved_job() -> ResolvedJob | None:
    """The TrainingJob that this process belongs to, if any."""
    path = os.environ.get(ENV_JOB_FILE)
    if path is None or not os.path.exists(path):
        return None
    return ResolvedJob.from_json(Path(path).read_text(encoding="utf-8"))


def in_output(folder: str) -> str:
    """Where a relative folder lies: in the job's output, which outlives the pod. An absolute one is the user's own."""
    output = os.environ.get(ENV_OUTPUT_DIR)
    return os.path.join(output, folder) if output and not os.path.isabs(folder) else folder


def warn_of_lost(folder: str) -> None:
    """Say so where a folder is on the pod's own disk."""
    place = os.path.abspath(folder)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    if place == "/" and "KUBERNETES_SERVICE_HOST" in os.environ and ENV_OUTPUT_DIR in os.environ:
        logger.warning(
            "output_dir: %s is on the pod's own disk and goes with the pod; write below %s, where a relative one "
            "lies, or mount a volume there (podTemplate.volumes)",
            folder,
            os.environ[ENV_OUTPUT_DIR],
        )


def stated_arguments() -> dict[str, Any]:
    """What ``spec.trainingArguments`` states and where its output is; empty outside of a job."""
    job = resolved_job()
    if job is None:
        return {}
    _read.append(job.uid)
    return {**job.training_arguments, "output_dir": os.environ.get(ENV_OUTPUT_DIR, "trainer_output")}


def tell_unread() -> None:
    """Say, once and on one rank, that a script has not asked for the arguments that its job states."""
    job = None if _read or os.environ.get("RANK", "0") != "0" else resolved_job()
    if job is not None and job.script is not None and job.training_arguments:
        _read.append(job.uid)
        names = ", ".join(sorted(job.training_arguments)[:5])
        print(
            f"trainingArguments: the job states {names}, and the script has not read them; make its arguments by "
            "TrainingArguments.from_job(), or leave them out of the manifest",
            file=sys.stderr,
            flush=True,
        )


def first_training(folder: str) -> ResolvedJob | None:
    """The job of this process, where its first training begins now, into ``folder``; None for a further one.

    A script is started anew by another attempt, and says ``train()`` as it did the first time. What it trains first
    goes on by itself; a second training of the same process may be meant to begin anew, so nobody guesses for it.
    """
    _begun.append(folder)
    return resolved_job() if len(_begun) == 1 else None
