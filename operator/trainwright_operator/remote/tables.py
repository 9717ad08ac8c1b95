"""Plain tables, as kubectl prints them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

PROSE = frozenset({"WHY", "MESSAGE", "OBJECT"})
"""Columns that may wrap; all others stay on one line."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold", no_wrap=heading not in PROSE)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def section(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[RenderableType]:
    """An empty line and the table, if there are rows."""
    if rows:
        yield ""
        yield table(headings, rows)
