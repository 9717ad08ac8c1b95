"""The API server takes the CRDs, and its verdict on a manifest is that of ``trainwright validate``."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from bad_manifests import CASES
from builders import make_job
from cluster import programs
from cluster.kube import ApiError, Kube, condition_of
from cluster.paths import CHECKOUT
from mutations import mutated_specs, specs_with_sound_arguments
from spec_changes import CHANGES, JOB
from trainwright_operator.api import crd, manifest
from trainwright_operator.commands.loading import load
from trainwright_operator.commands.planning import planned

MUTATIONS = int(os.environ.get("TRAINWRIGHT_MUTATIONS", "1000"))
"""How many mutated manifests both are asked about; 10000 takes minutes."""

pytestmark = pytest.mark.usefixtures("crds")

KNOWN_TO_CLIENTS = {"a key twice", "a tab", "a kind that does not exist", "a version that does not exist", "no spec"}
"""Mistakes that a client finds, so that the API server never gets to see them."""
KNOWN_TO_READERS = {
    "a configuration that contradicts the arguments",
    "a key that DeepSpeed does not have",
    "a stage that ZeRO does not have",
}
"""Mistakes in DeepSpeed's own configuration, whose keys the schema does not list: the operator refuses them."""


def verdict(request: Callable[[], Any]) -> str | None:
    """The API server's refusal, or None."""
    try:
        request()
    except ApiError as error:
        if error.code in (400, 422):
            return str(error)
        raise
    return None


def creation(kube: Kube, manifest: dict[str, Any]) -> str | None:
    """The verdict on a new object with strict field validation; nothing is created."""
    return verdict(lambda: kube.create(manifest, "default", dryRun="All", fieldValidation="Strict"))


def change(kube: Kube, namespace: str, spec: Any) -> str | None:
    """The verdict on a new spec of the object called job; nothing is changed."""
    stored = kube.get("TrainingJob", "job", namespace) | {"spec": spec}
    return verdict(lambda: kube.request("PUT", kube.path("TrainingJob", namespace, "job"), stored, dryRun="All"))


def bare(spec: Any) -> dict[str, Any]:
    made = make_job().without("metadata.uid").without("metadata.creationTimestamp").without("metadata.generation")
    return made.with_("spec", spec).manifest()


def test_the_crds_are_structural_and_established(kube: Kube) -> None:
    for one in (crd.job_crd(), crd.pool_crd()):
        found = kube.get("CustomResourceDefinition", one["metadata"]["name"], None)
        assert condition_of(found, "Established") == "True"
        assert condition_of(found, "NonStructuralSchema") is None


def our_words(node: Any) -> Iterator[str]:
    """The message of every rule that we wrote ourselves; of types, choices and bounds the API server has its own."""
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from our_words(child)


OURS = set(our_words(crd.job_crd())) | set(our_words(crd.pool_crd()))


def refused_cases() -> dict[str, list[str]]:
    return {name: said for name, (_, said) in CASES.items() if name not in KNOWN_TO_CLIENTS | KNOWN_TO_READERS}


def test_both_kinds_of_refusal_have_enough_cases() -> None:
    told = [line.split(": ", 2)[2] for said in refused_cases().values() for line in said]
    assert len(told) >= 20
    assert sum(words in OURS for words in told) >= 12


@pytest.mark.parametrize("name", refused_cases())
def test_what_validate_refuses_the_api_server_refuses_at_the_same_place_and_in_our_words(kube: Kube, name: str) -> None:
    (document,) = manifest.read(CASES[name][0], "job.yaml")
    refusal = creation(kube, document.content)
    assert refusal is not None
    for line in refused_cases()[name]:
        _, path, words = line.split(": ", 2)
        assert path in refusal or path.replace("[0]", "[]") in refusal
        assert words in refusal or words not in OURS


@pytest.mark.parametrize("name", sorted(KNOWN_TO_READERS))
def test_what_only_readers_know_is_left_to_the_operator(kube: Kube, name: str) -> None:
    (document,) = manifest.read(CASES[name][0], "job.yaml")
    assert creation(kube, document.content) is None


@settings(max_examples=MUTATIONS // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=mutated_specs())
def test_both_agree_on_mutated_specs(kube: Kube, spec: Any) -> None:
    both_agree(kube, spec)


@settings(max_examples=MUTATIONS // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs_with_sound_arguments())
def test_both_agree_on_arguments_right_by_themselves(kube: Kube, spec: Any) -> None:
    both_agree(kube, spec)


def both_agree(kube: Kube, spec: Any) -> None:
    ours, theirs = crd.problems(bare(spec)), creation(kube, bare(spec))
    assert bool(ours) == bool(theirs), (list(map(str, ours)), theirs)


@pytest.mark.parametrize("name", CHANGES)
def test_both_agree_on_what_may_change(kube: Kube, namespace: str, name: str) -> None:
    path, value, allowed = CHANGES[name]
    kube.create(bare(JOB["spec"]) | {"metadata": {"name": "job"}}, namespace)
    changed = make_job().with_("spec", JOB["spec"])
    changed = changed.without(f"spec.{path}") if value is None else changed.with_(f"spec.{path}", value)
    refusal = change(kube, namespace, changed.manifest()["spec"])
    assert (refusal is None) == allowed
    for problem in crd.change_problems(changed.manifest(), JOB):
        assert f"{problem.path}: " in str(refusal)
        assert problem.message in str(refusal)


def test_a_renamed_key_of_the_configuration_is_a_change(kube: Kube, namespace: str) -> None:
    kube.create(bare(JOB["spec"]) | {"metadata": {"name": "job"}}, namespace)
    renamed = make_job().with_("spec", JOB["spec"]).with_("spec.model.fromConfig", {"n_layer": 2, "n_embd": 32, "x": 2})
    assert "spec.model: " in str(change(kube, namespace, renamed.manifest()["spec"]))


SCALARS = """
3e-4 5e-05 1e5 1E5 -1e-3 2.0 -0.0 .5 -.5 +.5 +1 -1 0 00 010 -010 0o10 08 09.5 0x1F 0X1f 0b101 1_000 1__0 _1 1e400x
1e21 1e20 123456789012345678901 9223372036854775807 18446744073709551615 1. 1.e3 e5 1e 0x 0b2 0o9 + - . +. 1:30 19:20:30
y Y yes Yes YES yEs n N no No NO on On ON off Off OFF true True TRUE tRUE false null Null NULL ~ nil none None
2024-01-01 2024-1-1T2:3:4Z 12-34 1.2.3 1/2 v1 = <<x inf nan Infinity "no" '1e5' !!str_1 !!int_"1" !!float_1 !!bool_"yes"
"""


def test_scalars_are_read_as_kubectl_reads_them(kube: Kube) -> None:
    """kubectl reads the YAML and writes what it understood as JSON."""
    scalars = [re.sub(r"^(!![a-z]+)_", r"\1 ", scalar) for scalar in SCALARS.split()]
    lines = "".join(f"  - {scalar}\n" for scalar in scalars)
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\nextra:\n  scalars:\n{lines}"
    kubectl = [str(programs.program("kubectl")), "--kubeconfig", str(kube.kubeconfig)]
    command = [*kubectl, "create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"]
    out = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    (document,) = manifest.read(text, "x.yaml")
    assert document.content["extra"] == json.loads(out, parse_int=as_json_number)["extra"]


def as_json_number(digits: str) -> int | float:
    """Go reads a whole number that fits no int64 as a float."""
    return int(digits) if -(2**63) <= int(digits) < 2**63 else float(digits)


EXAMPLES = [[path] for path in sorted((CHECKOUT / "examples").glob("*.yaml"))]
CLOUDS = sorted({*(CHECKOUT / "examples" / "clouds").glob("*.yaml")} - {CHECKOUT / "examples" / "clouds" / "job.yaml"})
EXAMPLES += [[path.with_name("job.yaml"), path] for path in CLOUDS]


@pytest.mark.parametrize("files", EXAMPLES, ids=lambda files: files[-1].stem)
def test_examples_and_their_plans_are_taken(kube: Kube, files: list[Path]) -> None:
    loaded = load([str(file) for file in files])
    refusals = [creation(kube, document.content) for document in loaded.documents]
    refusals += [creation(kube, child) for child in planned(loaded)]
    assert len(refusals) >= 2
    assert set(refusals) == {None}
