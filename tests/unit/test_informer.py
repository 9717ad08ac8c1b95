"""Which TrainingJobs a change is about."""

from __future__ import annotations

from typing import Any

import pytest

from builders import make_job
from trainwright_operator.cluster.informer import Stores
from trainwright_operator.cluster.resources import POOLS, TRAINING_JOBS

POOL = {"metadata": {"name": "h100", "resourceVersion": "9"}, "spec": {"vendor": "cpu"}}


@pytest.mark.parametrize(
    ("status", "concerned"),
    [
        ({}, True),
        ({"state": "Pending", "observedGeneration": 1}, True),
        ({"state": "Restarting", "observedGeneration": 1}, True),
        ({"state": "Running", "observedGeneration": 1}, False),
        ({"state": "Succeeded", "observedGeneration": 1}, False),
        ({"state": "Succeeded", "observedGeneration": 0}, True),
    ],
    ids=["new", "waits", "between attempts", "at work", "finished", "finished, and changed since"],
)
def test_a_pool_concerns_the_jobs_that_may_start_an_attempt(status: dict[str, Any], concerned: bool) -> None:
    stores = Stores()
    stores.take(TRAINING_JOBS, make_job("train").with_("metadata.resourceVersion", "1").manifest() | {"status": status})
    assert stores.take(POOLS, POOL) == ([("default", "train")] if concerned else [])
