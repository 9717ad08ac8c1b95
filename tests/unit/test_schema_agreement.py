"""What ``validate`` says is what the CRD says: on changes, on mutated manifests, on arguments right by themselves."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import make_job
from crd_judge import nodes, refused
from trainwright_operator import schema

Schema = dict[str, Any]
SPEC = schema.job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

# What may change

JOB = make_job().training(maxSteps=200, numTrainEpochs=2.0).manifest()

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
    "scheduler settings": ("trainingArguments.lrSchedulerKwargs", {"power": 2}, False),
    "no arguments": ("trainingArguments", None, False),
    "another model": ("model.source", "gpt2-medium", False),
    "another configuration": ("model.fromConfig", {"n_layer": 3, "n_embd": 32, "n_head": 2}, False),
    "another dataset": ("dataset", {"source": "/other"}, False),
    "another task": ("task", "MaskedLM", False),
    "more nodes": ("accelerator", {"nodes": 2}, False),
    "another output": ("output", {"emptyDir": {}}, False),
    "a sample": ("sample", {"prompts": ["x"]}, False),
    "another image": ("podTemplate", {"image": "x"}, False),
    "a longer grace": ("terminationGracePeriodSeconds", 60, False),
    "offline": ("offline", True, False),
    "a hang timeout": ("hangTimeoutSeconds", 60, False),
    "deletion at the end": ("deleteAfterFinished", True, False),
}


@pytest.mark.parametrize(("path", "value", "allowed"), CHANGES.values(), ids=CHANGES)
def test_what_may_change_after_creation(path: str, value: Any, allowed: bool) -> None:
    changed = make_job().training(maxSteps=200, numTrainEpochs=2.0)
    changed = changed.without(f"spec.{path}") if value is None else changed.with_(f"spec.{path}", value)
    new = changed.manifest()
    place = (
        set() if allowed else {f"spec.{path}" if path.startswith("trainingArguments") else f"spec.{path.split('.')[0]}"}
    )
    assert {problem.path for problem in schema.change_problems(new, JOB)} == place
    assert refused(SPEC, new["spec"], JOB["spec"]) == {one.removeprefix("spec.") for one in place}


# The same verdict as the API server's


def same_verdict(spec: Any) -> None:
    ours = schema.problems({**make_job().manifest(), "spec": spec})
    theirs = refused(SPEC, spec)
    assert bool(ours) == bool(theirs), (list(map(str, ours)), theirs)


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 5),
        st.sampled_from([0.0, 0.5, 1.0, 1e300, math.pi, 2**31, 2**63 - 1]),
        st.sampled_from(
            ["", "no", "steps", "epoch", "best", "CausalLM", "Seq2SeqLM", "text", "a", "A b", "1Gi", "PET_X"]
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "key", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)
places = st.sampled_from([path for path, _ in nodes(SPEC) if path and "[]" not in path])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(places, values), min_size=1, max_size=3))
def test_validate_and_the_crd_agree_on_mutated_specs(mutations: list[tuple[str, Any]]) -> None:
    spec = copy.deepcopy(JOB["spec"])
    for path, value in mutations:
        *parents, last = path.strip(".").split(".")
        node = spec
        for name in parents:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[last] = value
    same_verdict(spec)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_validate_and_the_crd_agree_on_arguments_of_the_right_type(data: st.DataObject) -> None:
    """Right by themselves, so that the rules that span them are reached."""
    arguments = SPEC["properties"]["trainingArguments"]["properties"]
    chosen = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=6, unique=True))
    stated = {name: data.draw(sound(arguments[name])) for name in chosen}
    same_verdict(make_job().with_("spec.trainingArguments", stated).manifest()["spec"])


def sound(node: Schema) -> st.SearchStrategy[Any]:
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if node["type"] == "integer":
        return st.sampled_from(
            [number for number in (-1, 0, 1, 2, 500) if node["minimum"] <= number <= node["maximum"]]
        )
    simple = {"boolean": st.booleans(), "number": st.sampled_from([0, 0.5, 1, 1.5, 500]), "string": st.just("x")}
    if node["type"] == "array":
        return st.lists(sound(node["items"]), max_size=2)
    return simple.get(node["type"], st.just({}))
