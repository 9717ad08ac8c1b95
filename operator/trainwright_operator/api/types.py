"""Constructors of schemas in which a bound cannot be forgotten, and rules that a schema alone cannot say.

Everything is bounded because an API server prices each CEL rule by the largest object the schema lets through.
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
"""The API server keeps bounds as doubles: 2**63 - 1 would round up to what is no int64 any more."""


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is (``spec.trainingArguments.maxSteps``), and in one line what is wrong and the mend."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class Rule:
    """What spans fields: the CEL that the API server runs, and the same in Python for ``validate``.

    ``fine`` takes the object the rule stands on, and for a ``transition`` the former object as well. ``field`` is where
    the mistake is reported, relative to that object. ``needs`` names the fields whose values it looks at, so that it is
    not asked about values already known to be wrong; ``None`` is every field, ``()`` none: their presence alone.
    """

    cel: str
    message: str
    fine: Callable[..., bool]
    field: str | None = None
    transition: bool = False
    needs: tuple[str, ...] | None = None
    words: tuple[str, Callable[..., str]] | None = None
    """A message that names the values, as CEL and in Python; ``message`` is then what the rule says of any."""
    at_creation: bool = False
    """True once is true for good, as what it looks at is fixed after creation: an API server, which judges the whole
    object at every write of its status, need not look again."""

    def render(self) -> dict[str, Any]:
        once = {"optionalOldSelf": True} if self.at_creation else {}
        cel = f"oldSelf.hasValue() || ({self.cel})" if self.at_creation else self.cel
        told = {"messageExpression": self.words[0]} if self.words else {}
        path = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": cel, "message": self.message, **told, **path, **once}

    def told(self, *values: Any) -> str:
        return self.words[1](*values) if self.words else self.message


@dataclass(frozen=True)
class Pattern:
    """A regular expression (RE2 and Python read it alike) and what it means in words."""

    expression: str
    words: str


def string(
    about: str,
    most: int = 253,
    *,
    least: int = 0,
    pattern: Pattern | None = None,
    among: Iterable[str] | None = None,
) -> Schema:
    """Text of ``least`` to ``most`` characters, or one of the choices ``among``."""
    schema: Schema = {"type": "string", "description": about}
    if among is not None:
        return schema | {"enum": list(among)}
    schema["maxLength"] = most
    if least:
        schema["minLength"] = least
    if pattern:
        schema |= {"pattern": pattern.expression, "_words": pattern.words}
    return schema


def integer(about: str, least: int = 0, most: int = INT32_MAX) -> Schema:
    width = "int32" if least >= -INT32_MAX - 1 and most <= INT32_MAX else "int64"
    return {"type": "integer", "format": width, "description": about, "minimum": least, "maximum": most}


def number(about: str, *, least: float | None = None, most: float | None = None, open_ends: str = "") -> Schema:
    """A number; ``open_ends`` names the ends that are themselves excluded: ``"least"``, ``"most"`` or both."""
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
    """An object with known fields; ``required`` may give for each field the words that help who forgot it."""
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
    """An object whose fields belong to somebody else (a model's configuration, DeepSpeed's)."""
    return {"type": "object", "description": about, FREE: True}


def open_record(about: str, fields: Mapping[str, str]) -> Schema:
    """Like :func:`free`, with the fields by name that are known: of those alone CEL notices that one is renamed."""
    known = {name: {FREE: True, "nullable": True, "description": said} for name, said in fields.items()}
    return free(about) | {"properties": known}


def free_map(about: str, most: int = 512) -> Schema:
    """Like :func:`free`, for objects that CEL compares whole: it does not see a renamed key of a free object."""
    return map_of(about, {FREE: True, "nullable": True}, most)


def list_of(about: str, items: Schema, most: int, *, least: int = 0, key: str | None = None) -> Schema:
    """A list of at most ``most`` items; with ``key`` a list whose items are told apart by that field."""
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
        "_words": pattern.words,
    }


def at_creation(rules: Iterable[Rule]) -> list[Rule]:
    """The same rules, judged when the object is made and not again."""
    return [replace(rule, at_creation=True) for rule in rules]


def exactly_one(of: Iterable[str], message: str) -> Rule:
    """Exactly one of these fields is set."""
    fields = tuple(of)
    count = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in fields)
    return Rule(f"{count} == 1", message, lambda value: sum(name in value for name in fields) == 1, needs=())


def unchanged(name: str, message: str) -> Rule:
    """The field may neither appear, go nor change after creation."""
    return Rule(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
        message,
        lambda new, old: (name in new) == (name in old) and new.get(name) == old.get(name),
        field=name,
        transition=True,
    )
