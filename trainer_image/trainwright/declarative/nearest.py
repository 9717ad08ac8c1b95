"""The nearest right name, for errors that say what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(wrong: str, right: Iterable[str]) -> str:
    """``"; did you mean 'label'?"``, or nothing when no name comes near; case and separators do not count."""
    plain = {_plain(name): name for name in right}
    close = get_close_matches(_plain(wrong), plain, n=1, cutoff=0.6)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def some(names: Iterable[str], most: int = 12) -> str:
    """The names in one line, not more than ``most``: ``"a, b, c and 4 more"``."""
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(".", "")
