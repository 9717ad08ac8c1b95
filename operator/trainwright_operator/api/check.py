"""Checks a manifest against its schema: same verdict and field path as the API server, with messages for people.

It uses the schema that the CRD is rendered from. All problems are reported at once, while an API server may skip rules
until the types are valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from trainwright.nearest import did_you_mean
from trainwright_operator.api.manifest import join
from trainwright_operator.api.types import FREE, INT_OR_STRING, RULES, Problem, Rule, Schema
from trainwright_operator.api.unknown_fields import unknown_field

LONGEST_SHOWN = 60
MOST_CHOICES = 20


def check(schema: Schema, value: Any, path: str = "") -> list[Problem]:
    """All problems of ``value``, in the order of the manifest."""
    if FREE in schema and "type" not in schema:
        return []
    if (problem := _type_problem(schema, value, path)) is not None:
        return [Problem(path, problem)]
    inspect = _INSPECT["int-or-string"] if INT_OR_STRING in schema else _INSPECT[schema["type"]]
    problems = list(inspect(schema, value, path))
    rules = (rule for rule in schema.get(RULES, ()) if not rule.transition)
    return problems + [
        Problem(_place(rule, path), rule.message_for(value))
        for rule in rules
        if _is_broken(rule, value, path, problems)
    ]


def without_nulls(schema: Schema, value: Any) -> Any:
    """``value`` as an API server stores it: a known field that is null is dropped, except in free objects."""
    if isinstance(value, list) and "items" in schema:
        return [without_nulls(schema["items"], item) for item in value]
    if not isinstance(value, dict) or (FREE in schema and "properties" not in schema):
        return value
    fields, rest = schema.get("properties", {}), schema.get("additionalProperties")
    shapes = {key: fields.get(key, rest) for key in value}
    kept = {key: item for key, item in value.items() if item is not None or _keeps_null(shapes[key])}
    return {key: without_nulls(shapes[key] or {}, item) for key, item in kept.items()}


def _keeps_null(schema: Schema | None) -> bool:
    """An unknown field is kept, so that it is reported as unknown."""
    return schema is None or bool(schema.get("nullable"))


def check_change(schema: Schema, new: Any, old: Any, path: str = "") -> list[Problem]:
    """What the API server would refuse in a change from ``old`` to ``new``, which are both valid on their own."""
    rules = [rule for rule in schema.get(RULES, ()) if rule.transition and not rule.predicate(new, old)]
    problems = [Problem(_place(rule, path), rule.message_for(new, old)) for rule in rules]
    for key, child in schema.get("properties", {}).items():
        if isinstance(new, dict) and key in new and key in old:
            problems += check_change(child, new[key], old[key], join(path, key))
    return problems


def _is_broken(rule: Rule, value: Any, path: str, known: list[Problem]) -> bool:
    return not (known and _reads_invalid_value(rule, path, known)) and not rule.predicate(value)


def _place(rule: Rule, path: str) -> str:
    return join(path, rule.field) if rule.field else path


def _reads_invalid_value(rule: Rule, path: str, known: list[Problem]) -> bool:
    """Whether a value that the rule reads is already known to be invalid."""
    if rule.needs is None:
        return bool(known)
    needed = [join(path, field) for field in rule.needs]
    return any(
        problem.path == place or problem.path.startswith((f"{place}.", f"{place}["))
        for problem in known
        for place in needed
    )


# Types


def _type_problem(schema: Schema, value: Any, path: str) -> str | None:
    if value is None:
        return "is empty; give a value, or remove the line"
    kind = "int-or-string" if INT_OR_STRING in schema else schema["type"]
    if _IS[kind](value):
        return None
    wanted = f"one of {_choices(schema)}" if "enum" in schema else _TYPE_NAMES[kind]
    return f"must be {wanted}, not {_described(value)}{_fix(kind, schema, value, path)}"


def _is_whole(value: Any) -> bool:
    """As in the API server: a number with a point or an exponent counts as whole only up to 2^53 - 1."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) <= 2**53 - 1
    return isinstance(value, int) and not isinstance(value, bool)


_IS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_whole,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "int-or-string": lambda value: isinstance(value, str) or _is_whole(value),
}
_TYPE_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "int-or-string": "a whole number or text",
}


def _described(value: Any) -> str:
    for kind, name in (
        ("boolean", "the boolean"),
        ("number", ""),
        ("string", "the text"),
        ("array", "a list"),
        ("object", "an object"),
    ):
        if _IS[kind](value):
            return name if kind in ("array", "object") else f"{name} {_shown(value)}".strip()
    return type(value).__name__


def _fix(kind: str, schema: Schema, value: Any, path: str) -> str:
    """What to write instead, if that is clear."""
    key = path.rpartition(".")[2]
    if kind == "string" and isinstance(value, bool):
        return _quote_boolean(schema, value, key)
    if kind in ("string", "int-or-string") and isinstance(value, (int, float)):
        return f'; quote it: "{value}"'
    if kind in ("integer", "number") and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value):
        return "; remove the quotes"
    if kind == "boolean" and isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
        return "; remove the quotes"
    if kind == "object" and isinstance(value, str):
        return _as_object(schema, value, key)
    if kind == "array":
        return f"; write {key}: [{_shown(value)}]" if not isinstance(value, dict) else "; begin each item with '- '"
    return ""


def _as_object(schema: Schema, value: str, key: str) -> str:
    if value.startswith("{"):
        return "; write the object itself, without quotes"
    return f"; write {key}: {{source: {value}}}" if schema.get("required") == ["source"] else ""


def _quote_boolean(schema: Schema, value: bool, key: str) -> str:
    bare = "yes" if value else "no"
    choices = schema.get("enum", ())
    if choices and bare not in choices:
        return ""
    if choices:
        return f'; YAML reads a bare {bare} as a boolean, so quote it: {key}: "{bare}"'
    return f'; YAML reads a bare {bare} as a boolean, so quote the text: "{bare}" or "{str(value).lower()}"'


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _choices(schema: Schema) -> str:
    return ", ".join(choice if choice else "''" for choice in schema["enum"])


# Values


def _string(schema: Schema, value: str, path: str) -> Iterator[Problem]:
    if "enum" in schema:
        if value not in schema["enum"]:
            yield Problem(path, _not_a_choice(schema, value))
        return
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if len(value) < least:
        yield Problem(path, "is empty; give a value, or remove the line")
    elif most is not None and len(value) > most:
        yield Problem(path, f"is {len(value)} characters long, at most {most} are allowed; shorten it")
    elif "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        yield Problem(path, f"{_shown(value)} is not valid; {schema['_hint']}")


def _not_a_choice(schema: Schema, value: str) -> str:
    if len(schema["enum"]) == 1:
        return f"must be {_choices(schema)}, not {_shown(value)}"
    near = did_you_mean(value, schema["enum"])
    if len(schema["enum"]) > MOST_CHOICES and near:
        return f"{_shown(value)} is not a choice{near} (`trainwright explain` lists all)"
    return f"{_shown(value)} is not one of {_choices(schema)}{near}"


def _number(schema: Schema, value: float, path: str) -> Iterator[Problem]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and (value < least or (value == least and schema.get("exclusiveMinimum"))):
        yield Problem(
            path, f"must be {'above' if schema.get('exclusiveMinimum') else 'at least'} {least:g}, not {_shown(value)}"
        )
    if most is not None and (value > most or (value == most and schema.get("exclusiveMaximum"))):
        bound = f"{most:g}" if abs(most) < 1e6 else f"{most}"
        yield Problem(
            path, f"must be {'below' if schema.get('exclusiveMaximum') else 'at most'} {bound}, not {_shown(value)}"
        )


def _int_or_string(schema: Schema, value: Any, path: str) -> Iterator[Problem]:
    if isinstance(value, str):
        yield from _string(schema, value, path)


def _array(schema: Schema, value: list[Any], path: str) -> Iterator[Problem]:
    if len(value) < schema.get("minItems", 0):
        yield Problem(path, f"is empty; at least {schema['minItems']} is needed")
    if len(value) > schema["maxItems"]:
        yield Problem(path, f"has {len(value)} items, at most {schema['maxItems']} are allowed")
    for index, item in enumerate(value):
        yield from check(schema["items"], item, join(path, index))
    yield from _duplicates(schema, value, path)


def _duplicates(schema: Schema, value: list[Any], path: str) -> Iterator[Problem]:
    for key in schema.get("x-kubernetes-list-map-keys", ()):
        seen: set[str] = set()
        for index, item in enumerate(value):
            name = item.get(key) if isinstance(item, dict) else None
            if isinstance(name, str) and name in seen:
                yield Problem(join(path, index), f"{key} {_shown(name)} appears twice in the list; keep one of them")
            elif isinstance(name, str):
                seen.add(name)


def _object(schema: Schema, value: dict[str, Any], path: str) -> Iterator[Problem]:
    if FREE in schema:
        return
    if "additionalProperties" in schema:
        yield from _map(schema, value, path)
        return
    fields = schema.get("properties", {})
    for key, item in value.items():
        if key in fields:
            yield from check(fields[key], item, join(path, key))
        else:
            yield Problem(join(path, key), unknown_field(key, fields, path))
    for key in schema.get("required", ()):
        if key not in value:
            yield Problem(join(path, key), schema.get("_missing", {}).get(key, "is missing; give it"))


def _map(schema: Schema, value: dict[str, Any], path: str) -> Iterator[Problem]:
    if len(value) > schema["maxProperties"]:
        yield Problem(path, f"has {len(value)} entries, at most {schema['maxProperties']} are allowed")
    for key, item in value.items():
        yield from check(schema["additionalProperties"], item, join(path, key))


_INSPECT: dict[str, Callable[[Schema, Any, str], Iterator[Problem]]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "boolean": lambda schema, value, path: iter(()),
    "integer": _number,
    "number": _number,
    "int-or-string": _int_or_string,
}
