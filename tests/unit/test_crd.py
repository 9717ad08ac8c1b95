"""The CRDs: of the structural kind, bounded, described, and in step with what is on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from crd_judge import compiled, nodes
from trainwright_operator.api import crd, declare, manifest
from trainwright_operator.api.job import JobSpec
from trainwright_operator.api.types import FREE, INT_OR_STRING, RULES

CHECKOUT = Path(__file__).parents[2]
CRDS = {"job": crd.job_crd(), "pool": crd.pool_crd()}
Schema = dict[str, Any]


def version(crd: dict[str, Any]) -> dict[str, Any]:
    return crd["spec"]["versions"][0]


def root(crd: dict[str, Any]) -> Schema:
    return version(crd)["schema"]["openAPIV3Schema"]


ALL = [(f"{name}{path}", node) for name, one in CRDS.items() for path, node in nodes(root(one))]
SPECS = [(path, node) for path, node in ALL if ".metadata" not in path]


def test_the_files_are_in_step_with_the_types() -> None:
    on_disk = {path.name: path.read_text() for path in (CHECKOUT / "crds").glob("*.yaml")}
    assert on_disk == crd.crds(), "run `make crds`"


def test_the_files_read_alike_by_pyyaml_and_by_our_reader_and_fit_into_an_annotation() -> None:
    """kubectl keeps in one what was applied on the client's side, as JSON in which Go escapes three characters."""
    for text in crd.crds().values():
        content = yaml.safe_load(text)
        assert content == next(manifest.read(text, "crd.yaml")).content
        compact = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        kept = re.sub("[<>&]", "......", compact)
        assert len(kept.encode()) < 0.8 * 262_144, "the rest is for the annotations of others"


# Structural, as Kubernetes wants it


def test_every_node_has_a_type() -> None:
    untyped = {path for path, node in ALL if "type" not in node and INT_OR_STRING not in node and FREE not in node}
    assert untyped == set()


def test_what_is_said_in_anyof_has_no_structure_of_its_own() -> None:
    for path, node in ALL:
        for branch in node.get("anyOf", ()):
            assert set(branch) == {"type"}, path
        assert not {"oneOf", "allOf", "not", "$ref", "uniqueItems"} & set(node), path


def test_properties_and_additional_properties_exclude_each_other() -> None:
    assert [path for path, node in ALL if {"properties", "additionalProperties"} <= set(node)] == []


def test_required_fields_are_fields() -> None:
    for path, node in ALL:
        assert set(node.get("required", ())) <= set(node.get("properties", {})), path


def test_list_keys_are_required_scalars() -> None:
    for path, node in ALL:
        for key in node.get("x-kubernetes-list-map-keys", ()):
            assert key in node["items"]["required"], path
            assert node["items"]["properties"][key]["type"] in ("string", "integer"), path


def test_nothing_is_defaulted_into_the_stored_object() -> None:
    assert [path for path, node in ALL if "default" in node] == []


def test_of_metadata_only_the_name_is_restricted() -> None:
    for one in CRDS.values():
        assert set(root(one)["properties"]["metadata"]["properties"]) == {"name"}


def test_none_of_our_own_keys_is_left() -> None:
    assert [(path, key) for path, node in ALL for key in node if key.startswith("_")] == []


# Bounded and described


def test_every_string_is_bounded() -> None:
    loose = [path for path, node in SPECS if node.get("type") == "string" and not {"enum", "maxLength"} & set(node)]
    assert [path for path in loose if path.count(".") > 1] == []


def test_every_list_and_map_is_bounded() -> None:
    for path, node in ALL:
        if node.get("type") == "array":
            assert 0 < node["maxItems"] <= 1000, path
        if "additionalProperties" in node:
            assert 0 < node["maxProperties"] <= 1000, path


def test_every_whole_number_is_bounded_and_fits_its_format() -> None:
    for path, node in ALL:
        if node.get("type") == "integer":
            most = 2**31 - 1 if node["format"] == "int32" else 2**63 - 1
            assert -most - 1 <= node["minimum"] <= node["maximum"] <= most, path


def test_every_number_of_a_spec_is_bounded() -> None:
    for path, node in SPECS:
        if node.get("type") == "number" and ".status" not in path:
            assert -1e12 <= node["minimum"] <= node["maximum"] <= 1e12, path


def test_every_field_is_described_in_sentences() -> None:
    for path, node in SPECS:
        if FREE in node and "type" not in node:
            continue
        assert node.get("description", "").endswith("."), path


def test_every_optional_scalar_of_a_job_names_its_default() -> None:
    """``kubectl explain`` is the manual."""
    silent = []
    for path, node in nodes(root(CRDS["job"])["properties"]["spec"]):
        for name, child in node.get("properties", {}).items():
            scalar = child.get("type") in ("string", "integer", "number", "boolean")
            if scalar and name not in node.get("required", ()) and "Default: " not in child["description"]:
                silent.append(f"{path}.{name}")
    one_of = {".script.inline", ".script.path", ".podTemplate.env[].value", ".podTemplate.tolerations[].key"}
    one_of |= {".podTemplate.tolerations[].value", ".task", ".podTemplate.envFrom[].prefix"}
    for beside in ("initContainers", "sidecars"):
        one_of |= {f".podTemplate.{beside}[].env[].value", f".podTemplate.{beside}[].envFrom[].prefix"}
    one_of |= {f".accelerator.topology.{kind}" for kind in ("required", "preferred")}
    claim = ".podTemplate.resourceClaims[]"
    one_of |= {f"{claim}.resourceClaimName", f"{claim}.resourceClaimTemplateName"}
    accelerate = {path for path in silent if path.startswith(".trainingArguments.acceleratorConfig")}
    roles = {path for path in silent if path.startswith(".dataset.columns")}
    assert set(silent) - accelerate - roles <= one_of


def test_no_rule_measures_a_text() -> None:
    """Its price would be that of the longest text; maxLength is free. Only the keys of a map have no other measure."""
    for path, node in ALL:
        for rule in node.get(RULES, ()):
            assert "size()" not in rule["rule"], path
            assert "matches(" not in rule["rule"].replace("k.matches(", ""), path


def test_every_rule_compiles_and_names_a_field_that_is_there() -> None:
    for path, node in ALL:
        for rule in node.get(RULES, ()):
            compiled(rule["rule"])
            child = node
            for name in rule.get("fieldPath", "").strip(".").split("."):
                child = child["properties"][name] if name else child
            assert rule["message"].strip(), path
            assert "\n" not in rule["message"], path


def test_only_rules_about_what_is_fixed_are_judged_at_creation_alone() -> None:
    """A rule about suspend, say, has to be judged whenever that changes."""
    once = [(path, rule["rule"]) for path, node in ALL for rule in node.get(RULES, ()) if rule.get("optionalOldSelf")]
    assert len(once) > 30
    assert {path for path, _ in once} == {"job.spec", "job.spec.trainingArguments"}
    mutable = [field.key for field in declare.declared(JobSpec) if field.mutable]
    assert mutable == ["suspend", "maxRestarts", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    for _, rule in once:
        assert not re.search(rf"\b({'|'.join(mutable)})\b", rule)


# What people see


def test_the_job_is_found_by_its_short_name_and_among_all() -> None:
    names = CRDS["job"]["spec"]["names"]
    assert (names["shortNames"], names["categories"], CRDS["job"]["spec"]["scope"]) == (["tj"], ["all"], "Namespaced")
    assert CRDS["pool"]["spec"]["scope"] == "Cluster"


def test_the_columns_read_what_the_schema_has() -> None:
    for one in CRDS.values():
        for column in version(one)["additionalPrinterColumns"]:
            if column["jsonPath"].startswith(".metadata"):
                continue
            node = root(one)
            for name in column["jsonPath"].strip(".").split("."):
                node = node["properties"][name]
            assert node["type"] == column["type"], column


def test_kubectl_shows_these_columns_of_a_job() -> None:
    shown = [
        column["name"] for column in version(CRDS["job"])["additionalPrinterColumns"] if not column.get("priority")
    ]
    assert shown == ["State", "Step", "Loss", "Eval", "Tok/s", "Ends", "Restarts", "Age"]


def test_the_status_is_a_subresource() -> None:
    assert version(CRDS["job"])["subresources"] == {"status": {}}
