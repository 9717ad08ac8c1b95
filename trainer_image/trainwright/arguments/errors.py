"""What is said when arguments are wrong: every mistake at once, one line each, with the mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from trainwright.contract import UserError


@dataclass(frozen=True)
class Problem:
    """One mistake: ``field`` is the argument's name, ``message`` says what is wrong and what to write instead.

    ``raised`` is what transformers raises for it, if that is no ValueError: scripts may catch that.
    """

    field: str
    message: str
    raised: type[Exception] = ValueError

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
    """What is wrong with one value; the caller knows which field it belongs to. For ``raised`` see :class:`Problem`."""

    def __init__(self, message: str, raised: type[Exception] = ValueError) -> None:
        super().__init__(message)
        self.raised = raised


class ArgumentError(UserError):
    """Arguments that cannot be right. ``problems`` holds every mistake; the text has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.problems,)


class MissingPackageError(ArgumentError, ImportError):
    """An argument needs a package that is not installed, or too old."""


class MissingFileError(ArgumentError, FileNotFoundError):
    """An argument is a file that is not there."""


class UnknownArgumentError(ArgumentError, TypeError):
    """A name that is no argument; a :class:`TypeError` too, as Python raises for unknown keywords."""


class NotBuiltError(ArgumentError, NotImplementedError):
    """Arguments that are right but whose effect Trainwright does not have yet."""


_CLASSES = (MissingPackageError, MissingFileError, UnknownArgumentError, NotBuiltError)


def refusal(problems: Iterable[Problem]) -> ArgumentError:
    """What to raise for these problems: of the class that transformers raises for one of them, too."""
    problems = list(problems)
    kinds = {problem.raised for problem in problems}
    return next((cls for cls in _CLASSES if kinds & set(cls.__bases__)), ArgumentError)(problems)


class ModelError(UserError):
    """The model breaks the contract for models, which :mod:`trainwright.training.losses` states."""


class TrainerError(UserError, RuntimeError):
    """The Trainer was given what does not go together; scripts catch it as the one or the other."""


class NotCallableError(TrainerError, TypeError):
    """Something else stands where a function is needed."""


def kind_of(value: Any) -> str:
    """A value in the words of a message: what it is, and its text where that is short."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    is_plain = isinstance(value, str | int | float | bool)
    return "nothing (None)" if value is None else f"the {name} {shown('', value)}" if is_plain else f"a {name}"
