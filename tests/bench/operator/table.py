"""One table for each bench: what was measured, the limit it is held to, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """``limit`` is the most that ``value`` may be; None for what is only told."""

    what: str
    value: float
    unit: str = ""
    limit: float | None = None
    digits: int = 2

    @property
    def kept(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        limit, verdict = (
            ("", "") if self.limit is None else (self._number(self.limit), "kept" if self.kept else "MISSED")
        )
        return self.what, self._number(self.value), limit, verdict

    def _number(self, value: float) -> str:
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


def show(title: str, rows: list[Row]) -> bool:
    """Print them; True when every limit is kept."""
    table = Table("what", "measured", "at most", "verdict", title=title, title_justify="left")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=120).print(table)
    return all(row.kept for row in rows)
