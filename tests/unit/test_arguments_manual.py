"""The committed manual is what the fields and their proofs say."""

from __future__ import annotations

from pathlib import Path

from effects import EFFECTS
from trainwright.arguments.fields import FIELDS
from trainwright.arguments.manual import manual

PAGE = Path(__file__).parents[2] / "docs" / "training-arguments.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == manual(EFFECTS) + "\n", "run: make manual"


def test_every_argument_has_its_place() -> None:
    page = manual()
    assert [line[5:-1] for line in page.splitlines() if line.startswith("### ")] == list(FIELDS)
    assert "- bounds: at least 0, below 1" in page
    assert "- default: `5e-05`" in page


def test_every_effect_is_told_with_its_proof() -> None:
    entries = {entry.partition("`")[0]: entry for entry in manual(EFFECTS).split("### `")[1:]}
    for field, effect in EFFECTS.items():
        assert f"- test: `{effect.test}`\n" in entries[field]
        assert effect.where in entries[field]
