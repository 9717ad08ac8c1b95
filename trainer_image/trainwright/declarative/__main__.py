"""The entry point of each rank of a declarative job; the launcher runs a user's script by ``launch.entry`` instead."""

from __future__ import annotations

import os
from pathlib import Path

from trainwright.contract import ENV_OUTPUT_DIR, OUTPUT_DIR
from trainwright.launch import entry
from trainwright.launch.launcher import read_job


def main() -> None:
    """Train the job of the environment. Raises :class:`UserError` for errors that the user must fix."""
    from trainwright.declarative.environment import prepare_environment

    job = read_job(os.environ)
    prepare_environment(job.offline)  # before anything imports transformers
    from trainwright.declarative.job import run_declarative

    run_declarative(job, Path(os.environ.get(ENV_OUTPUT_DIR, OUTPUT_DIR)))


if __name__ == "__main__":
    entry.run(main)
