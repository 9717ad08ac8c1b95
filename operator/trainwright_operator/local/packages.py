"""Installs ``spec.script.requirements`` on this machine, into a cache that all runs share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainwright.launch import requirements
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.children import children
from trainwright_operator.core.placement.pools import place
from trainwright_operator.local.mounts import Mounts
from trainwright_operator.local.pod import environment_of

if TYPE_CHECKING:
    from trainwright_operator.local.run import Setup


def install(job: TrainingJob, setup: Setup, wanted: Sequence[str]) -> Path:
    """The folder of the installed packages; pip has the settings and the volumes that it has in a pod.

    Raises:
        UserError: a package cannot be found or installed; pip's output is in ``logs/requirements.log``.
    """
    log = setup.output / "logs" / "requirements.log"
    print(f"{job.name}: requirements: {', '.join(wanted)} (log: {log})", file=sys.stderr)
    return requirements.install_here(wanted, _cache(), _environment(job, setup), log)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainwright" / "packages"


def _environment(job: TrainingJob, setup: Setup) -> dict[str, str]:
    """The environment of the job's first pod, with paths of this machine."""
    template = children(job, place(job, setup.pool), 1)[-1]["spec"]["template"]
    mounts = Mounts.of(template["spec"], setup.output, setup.volumes, setup.scratch)
    metadata = {**template["metadata"], "name": f"{job.name}-0-1-0", "namespace": job.namespace}
    return environment_of({**template, "metadata": metadata}, mounts, os.environ, {})
