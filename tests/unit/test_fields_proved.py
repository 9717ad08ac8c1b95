"""No argument is accepted and ignored: each is proved by a named test, or refused at construction.

A field whose effect is built moves from ``REFUSED`` to ``EFFECTS``, with the test that fails without it.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from effects import EFFECTS, SCRIPTS
from trainwright.arguments.fields import FIELDS
from trainwright.arguments.refused import REFUSED

ROOT = Path(__file__).parents[2]

PACKAGE = ROOT / "trainer_image" / "trainwright"


def wholly_refused() -> set[str]:
    """Fields that are refused at every value but the default; the others are built for some values."""
    partly = {name for name, refusal in REFUSED.items() if set(map(str, refusal.built)) - off_values(name)}
    return {name for name in REFUSED if name in FIELDS} - partly


def off_values(name: str) -> set[str]:
    """Spellings of the default and of nothing."""
    return {"", "[]", "False", str(FIELDS[name].default if name in FIELDS else None)}


def test_every_field_is_proved_or_refused() -> None:
    neither = set(FIELDS) - set(EFFECTS) - wholly_refused()
    assert not neither, "prove the effect in tests/effects.py, or refuse the field in trainwright.arguments.refused"


def test_no_field_is_in_two_tables() -> None:
    assert not set(EFFECTS) & wholly_refused(), "take what is built out of REFUSED"
    assert set(EFFECTS) <= set(FIELDS)


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
