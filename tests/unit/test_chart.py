"""The chart beside the code that it sets up: what one names, the other has. No helm is needed here."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from trainwright_operator.api import declare
from trainwright_operator.api.pool import AcceleratorPool
from trainwright_operator.cluster.metrics import Metrics

CHART = Path(__file__).parents[2] / "charts" / "trainwright"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SUFFIXES = ("_bucket", "_sum", "_count", "")


def metric_names() -> set[str]:
    """Every name under which a sample can appear."""
    families = Metrics().registry.collect()
    named = {f"{one.name}{'_total' * (one.type == 'counter')}" for one in families}
    return {name + suffix for name in named for suffix in SUFFIXES}


@pytest.mark.parametrize("file", ["files/dashboard.json", "templates/monitoring.yaml", "templates/tests/serves.yaml"])
def test_every_metric_named_is_one_that_the_operator_tells(file: str) -> None:
    named = set(re.findall(r"\btrainwright_\w+", (CHART / file).read_text()))
    assert named
    assert named <= metric_names()


def test_the_default_values_fit_the_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(VALUES)] == []


def paths(values: dict) -> set[str]:
    """Names of values, and those one level below where they are grouped."""
    below = {f"{name}.{key}" for name, value in values.items() if isinstance(value, dict) for key in value}
    return {*values, *below}


def test_every_value_of_the_schema_is_shown_in_the_values_file_with_its_default() -> None:
    groups = {name: child.get("properties", {}) for name, child in SCHEMA["properties"].items()}
    not_shown = paths(groups) - paths(VALUES)
    assert {name for name in not_shown if name.split(".")[0] not in ("global", "affinity", "resources")} == set()


def objects_that_take_anything(schema: dict, at: str = "") -> set[str]:
    found = {at} if "properties" in schema and schema.get("additionalProperties") is not False else set()
    for name, child in schema.get("properties", {}).items():
        found |= objects_that_take_anything(child, f"{at}.{name}")
    return found


def test_no_object_of_the_schema_takes_values_that_it_does_not_know() -> None:
    assert objects_that_take_anything(SCHEMA) == set()


def test_a_pool_in_the_values_has_the_fields_of_the_crd() -> None:
    written = CHART / "values.schema.json"
    updated = runpy.run_path(str(CHART.parent / "values_schema.py"))["updated"]
    assert written.read_text() == updated(written.read_text()), "run `make crds`"


def test_the_pool_shown_in_the_values_file_is_a_valid_one() -> None:
    commented = (CHART / "values.yaml").read_text().partition("pools: {}\n")[2]
    pools = yaml.safe_load("\n".join(line.removeprefix("#") for line in commented.splitlines()))
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors({"pools": pools})] == []
    for pool in pools.values():
        assert set(pool["spec"]) <= set(declare.schema(AcceleratorPool)["properties"])
