"""Reads the state of a TrainingJob from its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright_operator.core.policy import FINISHED, Phase

Object = Mapping[str, Any]
UNSEEN: Mapping[str, Any] = {"state": Phase.PENDING.value, "display": {"state": Phase.PENDING.value}}
"""The status of a job that no operator has reconciled yet."""


def status_of(job: Object) -> Mapping[str, Any]:
    status = job.get("status") or {}
    return status if "state" in status and "display" in status else UNSEEN


def up_to_date(job: Object) -> bool:
    """Whether the operator has seen the current spec."""
    return bool((job.get("status") or {}).get("observedGeneration", 0) >= job["metadata"].get("generation", 0))


def finished(job: Object) -> bool:
    """Whether the job has finished; not if its spec was changed since, because the target may be raised."""
    return status_of(job)["state"] in FINISHED and up_to_date(job)


def failed(job: Object) -> bool:
    return bool(status_of(job)["state"] == Phase.FAILED) and up_to_date(job)


def condition(job: Object, kind: str) -> Mapping[str, Any] | None:
    """The condition of that type if it is True."""
    listed = (job.get("status") or {}).get("conditions") or ()
    return next((one for one in listed if one["type"] == kind and one["status"] == "True"), None)
