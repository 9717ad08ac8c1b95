"""Arguments whose effect is not built yet: setting one raises a ``NotImplementedError`` that names it.

No argument is accepted and ignored. To build an effect, delete its line here and add its test in
``tests/unit/test_fields_proved.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Problem, shown
from .fields import FIELDS


@dataclass(frozen=True)
class Refusal:
    """Why a field's effect is not built, and which values besides its default are built (for lists: elements)."""

    reason: str
    built: tuple[Any, ...] = ()


REFUSED: dict[str, Refusal] = {}
"""Field, or setting of a field after a dot -> why it is refused unless it has its default."""


def refusals(values: Mapping[str, Any]) -> list[Problem]:
    """A problem for each of ``values`` (field -> value) whose effect is not built."""
    asked = {name: _value(values, name) for name, refusal in REFUSED.items() if not _built(name, values, refusal)}
    return [
        Problem(name, f"{shown(name, value)} is not supported: {REFUSED[name].reason}") for name, value in asked.items()
    ]


def _value(values: Mapping[str, Any], name: str) -> Any:
    field, _, setting = name.partition(".")
    value = values.get(field)
    return getattr(value, setting, None) if setting else value


def _built(name: str, values: Mapping[str, Any], refusal: Refusal) -> bool:
    value, built = _value(values, name), refusal.built
    default = FIELDS[name].default if name in FIELDS else None
    if value is None or value == default or any(value == each for each in built):
        return True
    return isinstance(value, list) and all(element in built for element in value)
