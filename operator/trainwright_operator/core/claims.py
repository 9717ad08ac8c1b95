"""Whether the claim of a job's output can be written by all of its pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainwright_operator.api.spec import TrainingJob

SHARED = "ReadWriteMany"


def output_claim(job: TrainingJob, made: Iterable[Mapping[str, Any]]) -> str | None:
    """The claim to look at before ``made`` is created: that of an output which several pods are to write."""
    claim = job.spec.output.volume.get("persistentVolumeClaim")
    pods = sum(child["spec"]["completions"] for child in made if child["kind"] == "Job")
    return str(claim["claimName"]) if claim and pods > 1 else None


def unshared(claim: Mapping[str, Any]) -> str | None:
    """Why pods on several nodes cannot write it, and what to do; None when they can."""
    modes = (claim.get("spec") or {}).get("accessModes") or []
    if SHARED in modes:
        return None
    name = claim["metadata"]["name"]
    return (
        f"spec.output: PersistentVolumeClaim {name} is {', '.join(modes)}, and pods on several nodes write to it; make "
        f"a claim of that name that is {SHARED}, or give a new run such a claim or accelerator.nodes: 1"
    )
