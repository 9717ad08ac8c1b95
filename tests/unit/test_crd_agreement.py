"""What ``validate`` says is what the CRD says: on changes, on mutated manifests, on arguments right by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from builders import make_job
from crd_judge import refused
from mutations import SPEC, mutated_specs, specs_with_sound_arguments
from spec_changes import CHANGES, JOB, OPEN
from trainwright_operator.api import crd


@pytest.mark.parametrize(("path", "value", "allowed"), CHANGES.values(), ids=CHANGES)
def test_the_fields_that_may_change_after_creation_are_the_same_here_and_in_the_crd(
    path: str, value: Any, allowed: bool
) -> None:
    changed = make_job().training(maxSteps=200, numTrainEpochs=2.0, **OPEN)
    changed = changed.without(f"spec.{path}") if value is None else changed.with_(f"spec.{path}", value)
    new = changed.manifest()
    places = set() if allowed else {place_of_change(path, value)}
    problems = crd.change_problems(new, JOB)
    assert {problem.path for problem in problems} == {f"spec.{place}" for place in places}
    if places == {"trainingArguments"}:
        assert path.rpartition(".")[2] in str(problems[0])
    assert refused(SPEC, new["spec"], JOB["spec"]) == places


def place_of_change(path: str, value: Any) -> str:
    """Where a change is told: an argument that comes or goes at the object that it is in, which then names it."""
    group, _, argument = path.partition(".")
    stays = value is not None and argument in JOB["spec"].get(group, {})
    return path if group == "trainingArguments" and stays else group


# The same verdict as the API server's


def same_verdict(spec: Any) -> None:
    ours = crd.problems({**make_job().manifest(), "spec": spec})
    theirs = refused(SPEC, spec)
    assert bool(ours) == bool(theirs), (list(map(str, ours)), theirs)


@settings(max_examples=200)
@given(mutated_specs())
def test_validate_and_the_crd_agree_on_mutated_specs(spec: Any) -> None:
    same_verdict(spec)


@settings(max_examples=100)
@given(specs_with_sound_arguments())
def test_validate_and_the_crd_agree_on_arguments_right_by_themselves(spec: Any) -> None:
    same_verdict(spec)
