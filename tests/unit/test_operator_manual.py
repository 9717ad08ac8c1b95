"""docs/operator.md beside the code: its tables of settings, metrics and conditions hold what there is."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from trainwright_operator.api import names
from trainwright_operator.cluster import settings
from trainwright_operator.cluster.metrics import Metrics

MANUAL = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    _, _, section = MANUAL.partition(f"\n## {heading}\n")
    assert section, heading
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [re.split(r"\s*\|\s*", line)[1:-1] for line in table[2:]]


def test_every_metric_is_documented_with_its_own_help() -> None:
    families = {
        one.name + "_total" * (one.type == "counter"): (one.type, one.documentation)
        for one in Metrics().registry.collect()
    }
    assert {name.strip("`"): (kind, about) for name, kind, about in rows("Metrics")} == families


def test_every_setting_is_documented_with_its_default() -> None:
    told = {name.strip("`"): default.strip("`") for name, default, _ in rows("Settings")}
    known = {}
    for one in fields(settings.Settings):
        default = "" if one.name == "pod_name" else one.default
        known[settings.PREFIX + one.name.upper()] = {(): "", True: "true", False: "false"}.get(default, str(default))
    assert told == known


def test_every_condition_is_documented() -> None:
    conditions = [value for name, value in inspect.getmembers(names.Condition) if name.isupper()]
    assert sorted(name.strip("`") for name, _ in rows("Status and conditions")) == sorted(conditions)
