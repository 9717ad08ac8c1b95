"""No argument is accepted and ignored: each is proved by a named test that fails without its effect."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from effects import EFFECTS, SCRIPTS
from trainwright.arguments.fields import FIELDS

ROOT = Path(__file__).parents[2]

PACKAGE = ROOT / "trainer_image" / "trainwright"


def test_every_field_is_proved() -> None:
    assert set(EFFECTS) == set(FIELDS), "prove the effect of each field in tests/effects.py"


@pytest.mark.parametrize("field", EFFECTS)
def test_the_named_module_reads_the_field(field: str) -> None:
    where = EFFECTS[field].where
    if where != SCRIPTS:
        read = re.search(rf"""\b(args|self|arguments)\.{field}\b|["']{field}["']""", (PACKAGE / where).read_text())
        assert read, f"{where} never reads {field}"


@pytest.mark.parametrize("field", EFFECTS)
def test_the_named_test_is_there_and_speaks_of_the_field(field: str) -> None:
    path, _, test = EFFECTS[field].test.partition("::")
    assert test.partition("[")[0].split("::")[-1] in functions_of(path), f"{EFFECTS[field].test} does not exist"
    assert re.search(rf"\b{field}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path} never says {field}"


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
