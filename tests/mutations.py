"""Hypothesis strategies for specs of TrainingJobs: wrong in many ways, or right by themselves field by field."""

from __future__ import annotations

import copy
import math
from typing import Any

from hypothesis import strategies as st

from builders import make_job
from crd_judge import nodes
from trainwright_operator import schema

Schema = dict[str, Any]
SPEC: Schema = schema.job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from([0.5, 1e300, math.pi, 2**31, 2**63 - 1]),
    st.sampled_from(["", "no", "steps", "epoch", "CausalLM", "Seq2SeqLM", "text", "a", "A b", "1Gi", "PET_X"]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "key", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)
_PLACES = st.sampled_from([path for path, _ in nodes(SPEC) if path and "[]" not in path])


@st.composite
def mutated_specs(draw: st.DrawFn) -> Any:
    """A right spec in which one to three fields have been set to anything."""
    spec = make_job().training(maxSteps=200, numTrainEpochs=2).manifest()["spec"]
    for path, value in draw(st.lists(st.tuples(_PLACES, _VALUES), min_size=1, max_size=3)):
        _set(spec, path, copy.deepcopy(value))
    return spec


def _set(spec: Any, path: str, value: Any) -> None:
    *parents, last = path.strip(".").split(".")
    for name in parents:
        if not isinstance(spec.get(name), dict):
            spec[name] = {}
        spec = spec[name]
    spec[last] = value


@st.composite
def specs_with_sound_arguments(draw: st.DrawFn) -> Any:
    """Training arguments each of which is right by itself, so that the rules that span them are reached."""
    fields = SPEC["properties"]["trainingArguments"]["properties"]
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=6, unique=True))
    stated = {name: draw(_sound(fields[name])) for name in chosen}
    return make_job().with_("spec.trainingArguments", stated).manifest()["spec"]


def _sound(node: Schema) -> st.SearchStrategy[Any]:
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if node["type"] == "array":
        return st.lists(_sound(node["items"]), max_size=2)
    if node["type"] in ("integer", "number"):
        tried = (-1, 0, 1, 2, 500) if node["type"] == "integer" else (0, 0.5, 1, 1.5, 500)
        return st.sampled_from([number for number in tried if node["minimum"] <= number <= node["maximum"]])
    return {"boolean": st.booleans(), "string": st.just("x")}.get(node["type"], st.just({}))
