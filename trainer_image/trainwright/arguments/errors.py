"""What is said when arguments are wrong: every mistake at once, one line each, with the mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from trainwright.contract import UserError


@dataclass(frozen=True)
class Problem:
    """One mistake: ``field`` is the argument's name, ``message`` says what is wrong and what to write instead."""

    field: str
    message: str

    def __str__(self) -> str:
        return self.message if self.message.startswith(self.field) else f"{self.field}: {self.message}"


def hidden(field: str) -> str:
    """What stands for a token, given or not, where arguments are written down."""
    return f"<{field.upper()}>"


def shown(field: str, value: Any) -> str:
    """``value`` as a message may print it: short, an enum by its word, a token never."""
    if field.endswith("_token"):
        return "the token"
    text = repr(value.value if isinstance(value, Enum) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Mistake(ValueError):
    """What is wrong with one value; the caller knows which field it belongs to."""


class ArgumentError(UserError):
    """Arguments that cannot be right. ``problems`` holds every mistake; the text has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.problems,)


class MissingPackage(Problem):
    """A package that an argument needs is not installed, or too old."""


class MissingPackageError(ArgumentError, ImportError):
    """Arguments that need a package, and perhaps more that is wrong with them."""


class UnknownArgumentError(ArgumentError, TypeError):
    """A name that is no argument; a :class:`TypeError` too, as Python raises for unknown keywords."""


class NotBuiltError(ArgumentError, NotImplementedError):
    """Arguments that are right but whose effect Trainwright does not have yet."""
