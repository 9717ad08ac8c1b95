"""Renders a summary for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwright_operator.remote.board import STYLES
from trainwright_operator.remote.tables import section
from trainwright_operator.report.summary import ATTEMPTS, TIMES, Summary, attempts, facts, metrics, times


def to_screen(summary: Summary) -> RenderableType:
    title = Text(f"{summary.name}", style="bold")
    title.append(f"  namespace {summary.namespace}", style="dim")
    pairs = Table.grid(padding=(0, 2))
    pairs.add_column(style="dim", no_wrap=True)
    pairs.add_column(overflow="fold")
    for name, value in facts(summary):
        pairs.add_row(name, Text(value, style=STYLES.get(summary.state, "") if name == "state" else ""))
    return Group(
        title,
        pairs,
        *section(("METRIC", "VALUE"), metrics(summary)),
        *section(TIMES, times(summary)),
        *section(ATTEMPTS, attempts(summary)),
    )


def to_markdown(summary: Summary) -> str:
    return "\n".join(_markdown(summary)) + "\n"


def _markdown(summary: Summary) -> Iterator[str]:
    yield f"# {summary.name}\n"
    yield from _markdown_table(("", ""), facts(summary))
    if summary.metrics:
        yield "\n## Metrics\n"
        yield from _markdown_table(("metric", "value"), metrics(summary))
    if spent := times(summary):
        yield "\n## Time\n"
        yield from _markdown_table([heading.lower() for heading in TIMES], spent)
    if summary.attempts:
        yield "\n## Attempts\n"
        yield from _markdown_table([heading.lower() for heading in ATTEMPTS], attempts(summary))


def _markdown_table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    """Escapes text so that it stays in one cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
