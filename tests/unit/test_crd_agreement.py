"""What ``validate`` says is what the CRD says: on changes, on mutated manifests, on arguments right by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from builders import make_job
from crd_judge import refused
from mutations import SPEC, mutated_specs, specs_with_sound_arguments
from trainwright_operator.api import crd

OPEN = {"lrSchedulerKwargs": {"power": 2}, "acceleratorConfig": {"gradient_accumulation_kwargs": {"num_steps": 2}}}
JOB = make_job().training(maxSteps=200, numTrainEpochs=2.0, **OPEN).manifest()

CHANGES: dict[str, tuple[str, Any, bool]] = {
    "suspend": ("suspend", True, True),
    "more restarts": ("maxRestarts", 9, True),
    "a deadline": ("activeDeadlineSeconds", 60, True),
    "a time to live": ("ttlSecondsAfterFinished", 0, True),
    "more steps": ("trainingArguments.maxSteps", 300, True),
    "fewer steps": ("trainingArguments.maxSteps", 100, False),
    "no number of steps": ("trainingArguments.maxSteps", None, False),
    "more epochs": ("trainingArguments.numTrainEpochs", 3, True),
    "fewer epochs": ("trainingArguments.numTrainEpochs", 1, False),
    "the default epochs": ("trainingArguments.numTrainEpochs", None, True),
    "another rate": ("trainingArguments.learningRate", 1e-3, False),
    "no rate": ("trainingArguments.learningRate", None, False),
    "a seed": ("trainingArguments.seed", 1, False),
    "scheduler settings": ("trainingArguments.lrSchedulerKwargs", {"power": 3}, False),
    "a renamed setting": ("trainingArguments.lrSchedulerKwargs", {"lr_end": 2}, False),
    "a setting that nobody knows": ("trainingArguments.lrSchedulerKwargs", {"pover": 2}, False),
    "a renamed setting within": (
        "trainingArguments.acceleratorConfig",
        {"gradient_accumulation_kwargs": {"sync_each_batch": 2}},
        False,
    ),
    "checkpointing settings": ("trainingArguments.activationCheckpointingKwargs", {"use_reentrant": False}, False),
    "no arguments": ("trainingArguments", None, False),
    "another model": ("model.source", "gpt2-medium", False),
    "another configuration": ("model.fromConfig", {"n_layer": 3, "n_embd": 32, "n_head": 2}, False),
    "another dataset": ("dataset", {"source": "/other"}, False),
    "another task": ("task", "MaskedLM", False),
    "more nodes": ("accelerator", {"nodes": 2}, False),
    "another output": ("output", {"emptyDir": {}}, False),
    "a sample": ("sample", {"prompts": ["x"]}, False),
    "a label on the Job": ("jobTemplate", {"metadata": {"labels": {"team": "b"}}}, False),
    "another image": ("podTemplate", {"image": "x"}, False),
    "a longer grace": ("terminationGracePeriodSeconds", 60, False),
    "offline": ("offline", True, False),
    "a hang timeout": ("hangTimeoutSeconds", 60, False),
    "deletion at the end": ("deleteAfterFinished", True, False),
}


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
