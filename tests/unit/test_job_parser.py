"""A spec is checked once for each generation, and what else changes of the object is still seen."""

from __future__ import annotations

import pytest

from builders import make_job
from trainwright_operator.api import spec
from trainwright_operator.api.spec import SpecError
from trainwright_operator.cluster.job_parser import JobParser

KEY = ("default", "gpt-corpus")


@pytest.fixture
def checks(monkeypatch) -> list[str]:
    """The uid of each object whose spec was checked."""
    seen: list[str] = []
    accepted = spec._accepted
    monkeypatch.setattr(spec, "_accepted", lambda it, kind: seen.append(it["metadata"]["uid"]) or accepted(it, kind))
    return seen


def stored(uid="a", generation=1, restarts=3, **metadata) -> dict:
    job = make_job().with_("spec.maxRestarts", restarts).manifest()
    return {
        **job,
        "metadata": {**job["metadata"], "namespace": "default", "uid": uid, "generation": generation, **metadata},
    }


def test_a_change_of_the_status_alone_parses_nothing_again(checks) -> None:
    parser = JobParser()
    first = parser.parse(stored())
    again = parser.parse({**stored(), "status": {"state": "Running"}})
    assert checks == ["a"]
    assert (again.spec, again.status) == (first.spec, {"state": "Running"})


def test_a_change_of_the_metadata_is_seen(checks) -> None:
    parser = JobParser()
    parser.parse(stored())
    marked = stored(deletionTimestamp="2026-01-01T00:00:00Z", labels={"team": "a"}, finalizers=["x"])
    again = parser.parse(marked)
    assert checks == ["a"]
    assert again == spec.parse_job(marked)


@pytest.mark.parametrize("changed", [stored(generation=2, restarts=7), stored(uid="b", restarts=7)])
def test_a_new_spec_or_another_job_of_the_name_is_parsed(checks, changed) -> None:
    parser = JobParser()
    parser.parse(stored())
    assert parser.parse(changed).spec.max_restarts == 7
    assert len(checks) == 2


def test_a_job_that_is_forgotten_is_parsed_again(checks) -> None:
    parser = JobParser()
    parser.parse(stored())
    parser.forget(KEY)
    parser.parse(stored())
    assert checks == ["a", "a"]


def test_a_spec_that_cannot_be_read_is_refused_each_time() -> None:
    parser = JobParser()
    for _ in range(2):
        with pytest.raises(SpecError):
            parser.parse(stored(restarts="many"))
