"""Hypothesis strategies for specs of TrainingJobs: wrong in many ways, or right by themselves field by field."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from builders import make_job
from trainwright_operator.api import crd

Schema = dict[str, Any]
SPEC: Schema = crd.job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

DURING = "DuringSchedulingIgnoredDuringExecution"
WHOLE = (
    make_job()
    .nodes(2, 4)
    .training(numTrainEpochs=2, evalStrategy="steps", loadBestModelAtEnd=True, labelNames=["y"])
    .training(lrSchedulerKwargs={"power": 1}, acceleratorConfig={"split_batches": True})
    .with_("spec.sample", {"prompts": ["Once"], "temperature": 0.5})
    .with_(
        "spec.podTemplate",
        {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            "imagePullSecrets": [{"name": "pull"}],
            "resources": {"limits": {"cpu": "1", "memory": 4}},
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}],
            "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
                {"name": "w", "configMap": {"name": "x", "items": [{"key": "k", "path": "a/b", "mode": 420}]}},
                {"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            ],
            "volumeMounts": [{"name": "v", "mountPath": "/data"}, {"name": "w", "mountPath": "/w", "subPath": "x"}],
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "k", "value": "v", "effect": "NoExecute", "tolerationSeconds": 3}],
            "affinity": {
                "nodeAffinity": {
                    f"required{DURING}": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "memory", "operator": "Gt", "values": ["40000"]}]}
                        ]
                    }
                },
                "podAntiAffinity": {
                    f"preferred{DURING}": [
                        {"weight": 9, "podAffinityTerm": {"topologyKey": "zone", "namespaces": ["a"]}}
                    ]
                },
            },
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2}
            ],
            "initContainers": [
                {"name": "fetch", "command": ["a"], "volumeMounts": [{"name": "v", "mountPath": "/data"}]}
            ],
            "sidecars": [
                {"name": "sync", "securityContext": {"runAsUser": 7}, "startupProbe": {"httpGet": {"port": 80}}}
            ],
            "dnsConfig": {"nameservers": ["10.0.0.1"], "options": [{"name": "ndots", "value": "2"}]},
        },
    )
    .manifest()["spec"]
)
"""A spec that is right, with something in every corner."""

_TEXTS = ["", "a", "A b", "no", "/x", "../x", "1Gi", "PET_A", "trainwright-x", "x" * 300, "CausalLM", "Seq2SeqLM"]
_NUMBERS = [0, -1, 1, 2**31, 2**63 - 1, 0.5, 1e13, 1e300, math.pi]
_SHAPES = [[], ["a"], [None], [[]], {}, {"name": "x"}, {"x": None}, {"a": {"b": 1}}]
_VALUES = st.sampled_from([None, True, False, *_NUMBERS, *_TEXTS, *_SHAPES])
_NEW = st.sampled_from(["x", "name", "value", "script", "evalSteps", "deepspeed", "streaming", "emptyDir"])


@st.composite
def mutated_specs(draw: st.DrawFn) -> Any:
    """A right spec in which one to three things were changed, added, taken away or doubled."""
    spec = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(list(_places(spec))))
        value = copy.deepcopy(draw(_VALUES))
        change = draw(st.sampled_from(["set", "set", "add", "remove"]))
        if change == "remove":
            del parent[key]
        elif change == "set":
            parent[key] = value
        elif isinstance(parent, dict):
            parent[draw(_NEW)] = value
        else:
            parent.append(copy.deepcopy(parent[key]))
    return spec


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a spec as its parent and the key or index there."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(child, (dict, list)):
            yield from _places(child)


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
