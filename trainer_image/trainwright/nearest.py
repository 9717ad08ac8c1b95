"""The right name that somebody meant by a wrong one, for errors of the Trainer and of the operator alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ALIKE = 0.7
"""How alike two names must be, of 1."""


def nearest(word: Any, choices: Iterable[str]) -> str | None:
    """The same name in another spelling (snake_case, other capitals), one that begins with it, or the most alike."""
    from difflib import get_close_matches  # only where something is wrong already

    if not isinstance(word, str):
        return None
    folded, wanted = {_fold(choice): choice for choice in choices}, _fold(word)
    longer = [name for name in folded if len(wanted) > 2 and name.startswith(wanted)]
    near = [wanted] if wanted in folded else longer or get_close_matches(wanted, folded, n=1, cutoff=ALIKE)
    return folded[near[0]] if near else None


def did_you_mean(word: Any, choices: Iterable[str]) -> str:
    """``"; did you mean steps?"`` when one of ``choices`` is near, otherwise nothing."""
    near = nearest(word, choices)
    return f"; did you mean {near}?" if near else ""


def some(names: Iterable[str], most: int = 12) -> str:
    """The names in one line, not more than ``most``: ``"a, b, c and 4 more"``."""
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def _fold(name: str) -> str:
    """Names that differ in case and separators only are the same name."""
    return name.lower().replace("_", "").replace("-", "").replace(".", "")
