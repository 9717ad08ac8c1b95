"""The tests that docs/sharding.md names for each feature exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "tests" / "trainer" / f"test_{name}.py" for name in ("fsdp", "fsdp_features", "sharded_checkpoint")]
SHARDED = "".join(path.read_text(encoding="utf-8") for path in FILES)
ZERO = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests" / "zero").glob("*.py")))


def rows() -> list[list[str]]:
    page = (ROOT / "docs" / "sharding.md").read_text(encoding="utf-8")
    section = page.partition("## Which feature was tried with which strategy")[2].partition("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip())
def test_the_tests_that_a_row_names_exist(row: list[str]) -> None:
    _, by_fsdp, by_zero = row
    for text, cell in ((SHARDED, by_fsdp), (ZERO, by_zero)):
        for name in re.findall(r"`(\w+)`", cell):
            assert f"def {name}(" in text, name


def test_the_table_is_found() -> None:
    assert len(rows()) > 20
