"""What the launcher starts in each rank: the resolved job's script, or its model, dataset and task.

A script job imports nothing of transformers, datasets or torch here; what it needs is the script's own to say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trainwright import entry
from trainwright.contract import ENV_JOB_FILE, ENV_OUTPUT_DIR, JOB_FILE, OUTPUT_DIR, ResolvedJob, UserError


def main() -> None:
    """Run the job that the environment names. Raises :class:`UserError` for what only a person can mend."""
    job = read_job(os.environ)
    if job.script is not None:
        entry.run_script(str(job.script["path"]), job.script.get("args") or ())
        return
    from trainwright.declarative.environment import prepare_environment

    prepare_environment(job.offline)
    from trainwright.declarative.job import run_declarative

    run_declarative(job, Path(os.environ.get(ENV_OUTPUT_DIR, OUTPUT_DIR)))


def read_job(environ: Mapping[str, str]) -> ResolvedJob:
    """The resolved job in the file that the environment names."""
    path = environ.get(ENV_JOB_FILE, JOB_FILE)
    try:
        return ResolvedJob.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a resolved job ({error}); it is set by {ENV_JOB_FILE}") from error


if __name__ == "__main__":
    entry.run(main)
