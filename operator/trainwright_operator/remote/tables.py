"""Plain tables, as kubectl prints them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from trainwright_operator.terminal import Columns

PROSE = frozenset({"WHY", "MESSAGE", "OBJECT"})
"""Columns that may wrap, or go below their row; all others stay on one line while they fit."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    return Columns(headings, [[Text(cell) for cell in row] for row in rows], prose=PROSE)


def section(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[RenderableType]:
    """An empty line and the table, if there are rows."""
    if rows:
        yield ""
        yield table(headings, rows)
