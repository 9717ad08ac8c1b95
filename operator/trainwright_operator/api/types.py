"""Constructors for schemas with bounds, and rules that a schema cannot express.

Everything is bounded because an API server estimates the cost of a CEL rule by the largest object that the schema
allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Schema = dict[str, Any]

RULES = "x-kubernetes-validations"
FREE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"

INT32_MAX = 2**31 - 1
INT64_MAX = 2**53 - 1
"""The API server stores bounds as doubles; 2**63 - 1 would be rounded to a number that is no int64."""


@dataclass(frozen=True)
class Problem:
    """One problem: the path of the field (``spec.trainingArguments.maxSteps``), and one line with problem and fix."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class Rule:
    """A validation rule, as CEL for the API server and as a Python predicate for ``validate``.

    ``predicate`` takes the object that has the rule, and for a ``transition`` also the old object. The problem is
    reported at ``field``, relative to that object. ``needs`` lists the fields whose values the rule reads: it is
    skipped if one of them is already invalid. ``None`` means all fields; ``()`` means that only their presence matters.
    """

    cel: str
    message: str
    predicate: Callable[..., bool]
    field: str | None = None
    transition: bool = False
    needs: tuple[str, ...] | None = None
    message_with_values: tuple[str, Callable[..., str]] | None = None
    """A message that includes values, as CEL and in Python; ``message`` is the fallback without them."""
    at_creation: bool = False
    """Whether the rule runs only at creation, because the fields that it reads cannot change afterwards. The API server
    would otherwise run it at every write of the status."""

    def render(self) -> dict[str, Any]:
        once = {"optionalOldSelf": True} if self.at_creation else {}
        cel = f"oldSelf.hasValue() || ({self.cel})" if self.at_creation else self.cel
        expression = {"messageExpression": self.message_with_values[0]} if self.message_with_values else {}
        path = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": cel, "message": self.message, **expression, **path, **once}

    def message_for(self, *values: Any) -> str:
        return self.message_with_values[1](*values) if self.message_with_values else self.message


@dataclass(frozen=True)
class Pattern:
    """A regular expression that RE2 and Python read the same way, and a hint for a value that does not match."""

    expression: str
    hint: str


def string(
    about: str,
    most: int = 253,
    *,
    least: int = 0,
    pattern: Pattern | None = None,
    among: Iterable[str] | None = None,
) -> Schema:
    """A string of ``least`` to ``most`` characters, or one of the choices ``among``."""
    schema: Schema = {"type": "string", "description": about}
    if among is not None:
        return schema | {"enum": list(among)}
    schema["maxLength"] = most
    if least:
        schema["minLength"] = least
    if pattern:
        schema |= {"pattern": pattern.expression, "_hint": pattern.hint}
    return schema


def integer(about: str, least: int = 0, most: int = INT32_MAX) -> Schema:
    width = "int32" if least >= -INT32_MAX - 1 and most <= INT32_MAX else "int64"
    return {"type": "integer", "format": width, "description": about, "minimum": least, "maximum": most}


def number(about: str, *, least: float | None = None, most: float | None = None, open_ends: str = "") -> Schema:
    """A number; ``open_ends`` names the bounds that are exclusive: ``"least"``, ``"most"`` or both."""
    schema: Schema = {"type": "number", "description": about}
    if least is not None:
        schema["minimum"] = least
        if "least" in open_ends:
            schema["exclusiveMinimum"] = True
    if most is not None:
        schema["maximum"] = most
        if "most" in open_ends:
            schema["exclusiveMaximum"] = True
    return schema


def boolean(about: str) -> Schema:
    return {"type": "boolean", "description": about}


def record(
    about: str,
    fields: Mapping[str, Schema],
    *,
    required: Mapping[str, str] | Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> Schema:
    """An object with known fields; ``required`` may map each field to the message for when it is missing."""
    schema: Schema = {"type": "object", "description": about, "properties": dict(fields)}
    if names := list(required):
        schema["required"] = names
    if isinstance(required, Mapping):
        schema["_missing"] = dict(required)
    if rules := list(rules):
        schema[RULES] = rules
    return schema


def map_of(about: str, values: Schema, most: int, *, rules: Iterable[Rule] = ()) -> Schema:
    schema: Schema = {"type": "object", "description": about, "additionalProperties": values, "maxProperties": most}
    return schema | ({RULES: list(rules)} if rules else {})


def free(about: str) -> Schema:
    """An object with arbitrary fields (a model's or DeepSpeed's configuration)."""
    return {"type": "object", "description": about, FREE: True}


def open_record(about: str, fields: Mapping[str, str]) -> Schema:
    """Like :func:`free`, with descriptions of known fields. CEL compares the names of known fields only."""
    known = {name: {FREE: True, "nullable": True, "description": text} for name, text in fields.items()}
    return free(about) | {"properties": known}


def free_map(about: str, most: int = 512) -> Schema:
    """Like :func:`free`, for objects that CEL has to compare: in a free object it misses a renamed key."""
    return map_of(about, {FREE: True, "nullable": True}, most)


def list_of(about: str, items: Schema, most: int, *, least: int = 0, key: str | None = None) -> Schema:
    """A list of at most ``most`` items; ``key`` is the field that identifies an item."""
    schema: Schema = {"type": "array", "description": about, "items": items, "maxItems": most}
    if least:
        schema["minItems"] = least
    if key:
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    else:
        schema["x-kubernetes-list-type"] = "atomic"
    return schema


def int_or_string(about: str, pattern: Pattern, most: int = 64) -> Schema:
    return {
        INT_OR_STRING: True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "description": about,
        "maxLength": most,
        "pattern": pattern.expression,
        "_hint": pattern.hint,
    }


def at_creation(rules: Iterable[Rule]) -> list[Rule]:
    """The same rules, evaluated only when the object is created."""
    return [replace(rule, at_creation=True) for rule in rules]


def exactly_one(of: Iterable[str], message: str) -> Rule:
    """Exactly one of these fields is set."""
    fields = tuple(of)
    count = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in fields)
    return Rule(f"{count} == 1", message, lambda value: sum(name in value for name in fields) == 1, needs=())


def unchanged(name: str, message: str) -> Rule:
    """The field may not be added, removed or changed after creation."""
    return Rule(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
        message,
        lambda new, old: (name in new) == (name in old) and new.get(name) == old.get(name),
        field=name,
        transition=True,
    )
