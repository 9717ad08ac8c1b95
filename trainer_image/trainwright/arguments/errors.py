"""Errors for wrong arguments: all problems at once, one line each, with the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from trainwright.contract import UserError


@dataclass(frozen=True)
class Problem:
    """One problem: ``field`` is the argument's name, ``message`` says what is wrong and how to fix it.

    ``raised`` is the type that transformers raises for it if not ValueError, because scripts may catch it.
    """

    field: str
    message: str
    raised: type[Exception] = ValueError

    def __str__(self) -> str:
        return self.message if self.message.startswith(self.field) else f"{self.field}: {self.message}"


def hidden(field: str) -> str:
    """The placeholder of a token, given or not, in saved arguments."""
    return f"<{field.upper()}>"


def shown(field: str, value: Any) -> str:
    """``value`` for a message: shortened, an enum by its value, never a token."""
    if field.endswith("_token"):
        return "the token"
    text = repr(value.value if isinstance(value, Enum) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Mistake(ValueError):
    """A wrong value; the caller knows the field. For ``raised`` see :class:`Problem`."""

    def __init__(self, message: str, raised: type[Exception] = ValueError) -> None:
        super().__init__(message)
        self.raised = raised


class ArgumentError(UserError):
    """Invalid arguments. ``problems`` has all problems; the message has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.problems,)


class MissingPackageError(ArgumentError, ImportError):
    """An argument needs a package that is missing or too old."""


class MissingFileError(ArgumentError, FileNotFoundError):
    """An argument names a file that does not exist."""


class UnknownArgumentError(ArgumentError, TypeError):
    """An unknown argument; also a :class:`TypeError`, as Python raises for unknown keywords."""


class NotBuiltError(ArgumentError, NotImplementedError):
    """Valid arguments whose effect Trainwright does not implement yet."""


_CLASSES = (MissingPackageError, MissingFileError, UnknownArgumentError, NotBuiltError)


def refusal(problems: Iterable[Problem]) -> ArgumentError:
    """The error for these problems; it also derives from the type that transformers raises for one of them."""
    problems = list(problems)
    kinds = {problem.raised for problem in problems}
    return next((cls for cls in _CLASSES if kinds & set(cls.__bases__)), ArgumentError)(problems)


class ModelError(UserError):
    """The model violates the contract of :mod:`trainwright.training.losses`."""


class TrainerError(UserError, RuntimeError):
    """The inputs of the Trainer do not fit together; scripts may catch it as either base class."""


class NotCallableError(TrainerError, TypeError):
    """A value is not a function where one is needed."""


def kind_of(value: Any) -> str:
    """Describes a value for a message: its type, and its text if short."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    is_plain = isinstance(value, str | int | float | bool)
    return "nothing (None)" if value is None else f"the {name} {shown('', value)}" if is_plain else f"a {name}"
