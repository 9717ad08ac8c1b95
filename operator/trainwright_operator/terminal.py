"""What is printed through rich, to a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table

PIPE_WIDTH = 240
GAP = 2
"""Between two columns."""
LITTLE = 24
"""Prose that would get a narrower column than this goes below its row."""


class Terminal(Console):
    """Raises what ``print`` raises when the reader of a pipe has gone, where rich ends the process with a failure."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError


def show(what: RenderableType) -> None:
    """Print; in a pipe with wide lines for `grep`, and without trailing blanks."""
    console = Terminal(highlight=False)
    if console.is_terminal:
        console.print(what)
        return
    console = Terminal(highlight=False, width=PIPE_WIDTH)
    with console.capture() as captured:
        console.print(what)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def takes_lines_back(console: Console) -> bool:
    """Whether lines can be overwritten: on no pipe, where notebooks and some CI force colors (FORCE_COLOR)."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


@dataclass(frozen=True)
class Columns:
    """A table for any width: cells are wrapped, moved or left out, and never cut.

    The columns of ``spare`` are left out, one after another, until the others fit. Those of ``prose`` wrap, or go below
    their row if little room is left. What is still too wide is folded.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[RenderableType]]
    spare: Sequence[str] = ()
    prose: Set[str] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        widths = {heading: self._width(heading, console, options) for heading in self.headings}
        shown = list(self.headings)
        for heading in self.spare:
            if _total(widths, shown) > options.max_width and heading in shown:
                shown.remove(heading)
        beside = [heading for heading in shown if heading not in self.prose]
        below = [heading for heading in shown if heading in self.prose]
        least = {**widths, **{heading: min(widths[heading], LITTLE) for heading in below}}
        if _total(least, shown) <= options.max_width:
            yield self._table(shown, self.rows)
            return
        narrowed = _narrowed({heading: widths[heading] for heading in beside}, options.max_width)
        if not below:
            yield self._table(beside, self.rows, narrowed)
            return
        yield self._table(beside, (), narrowed)
        for row in self.rows:
            yield self._table(beside, [row], narrowed, header=False)
            yield from (Padding(self._cell(row, heading), (0, 0, 0, 2)) for heading in below)

    def _cell(self, row: Sequence[RenderableType], heading: str) -> RenderableType:
        return row[self.headings.index(heading)]

    def _width(self, heading: str, console: Console, options: ConsoleOptions) -> int:
        wide = options.update(max_width=1000)
        cells = [self._cell(row, heading) for row in self.rows]
        return max(len(heading), *(Measurement.get(console, wide, cell).maximum for cell in cells), 0)

    def _table(
        self,
        shown: Sequence[str],
        rows: Sequence[Sequence[RenderableType]],
        widths: Mapping[str, int] | None = None,
        header: bool = True,
    ) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_header=header)
        for heading in shown:
            one_line = widths is None and heading not in self.prose
            width = widths[heading] if widths else None
            made.add_column(heading, no_wrap=one_line, overflow="fold", width=width)
        for row in rows:
            made.add_row(*(self._cell(row, heading) for heading in shown))
        return made


def _total(widths: Mapping[str, int], shown: Sequence[str]) -> int:
    return sum(widths[heading] + GAP for heading in shown) - GAP


def _narrowed(widths: dict[str, int], most: int) -> dict[str, int]:
    """The widest columns give room until all fit."""
    while _total(widths, list(widths)) > most:
        widest = max(widths, key=lambda heading: widths[heading])
        if widths[widest] <= 1:
            break
        widths[widest] -= 1
    return widths
