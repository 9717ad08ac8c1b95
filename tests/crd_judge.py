"""A stand-in for the API server's check of a custom resource: the OpenAPI by jsonschema, the rules by a CEL library.

It reads the CRD as it is written to disk and knows nothing of the code that made it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import cel
import jsonschema

Schema = dict[str, Any]
RULES = "x-kubernetes-validations"
ONCE = "oldSelf.hasValue() || "
"""How a rule begins that is judged at creation alone."""
FREE = "x-kubernetes-preserve-unknown-fields"


def refused(schema: Schema, value: Any, old: Any = None) -> set[str]:
    """Paths at which an API server with strict field validation would refuse ``value``."""
    value = _without_nulls(schema, value)
    doubles = set(_doubles(schema, value, ""))
    wrong = doubles | {_path(error) for error in _validator(_Hashed(schema)).iter_errors(value)}
    return wrong or set(_broken_rules(schema, value, old, ""))


def _without_nulls(schema: Schema, value: Any) -> Any:
    """An API server drops a null field before it looks at the object; in a list or a free object it stays."""
    if isinstance(value, list):
        return [_without_nulls(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict) or schema.get(FREE):
        return value
    unknown = {"nullable": True}
    children = {
        key: schema.get("properties", {}).get(key) or schema.get("additionalProperties") or unknown for key in value
    }
    return {
        key: _without_nulls(children[key], item)
        for key, item in value.items()
        if item is not None or children[key].get("nullable")
    }


def _doubles(schema: Schema, value: Any, path: str) -> Iterator[str]:
    """Items of a list that is a map by some key, where that key was there before."""
    children: list[tuple[str | int, Schema, Any]] = []
    if isinstance(value, dict):
        fields, rest = schema.get("properties", {}), schema.get("additionalProperties") or {}
        children = [(key, fields.get(key, rest), item) for key, item in value.items()]
    if isinstance(value, list):
        children = [(index, schema.get("items", {}), item) for index, item in enumerate(value)]
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            names = [item.get(key) if isinstance(item, dict) else None for item in value]
            yield from (_child(path, i) for i, name in enumerate(names) if name is not None and name in names[:i])
    for key, child, item in children:
        yield from _doubles(child, item, _child(path, key))


def _is_whole(checker: Any, value: Any) -> bool:
    """An API server takes a number with a point or an exponent for whole up to 2^53 - 1 at most."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53
    return isinstance(value, int) and not isinstance(value, bool)


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole),
)


class _Hashed:
    """A schema as the key of a cache: by identity."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def __hash__(self) -> int:
        return id(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.schema is other.schema


@functools.cache
def _validator(key: _Hashed) -> Any:
    return _Validator(as_json_schema(key.schema))


def as_json_schema(schema: Schema) -> Schema:
    """Kubernetes' dialect in JSON Schema: strict about unknown fields, booleans for exclusive bounds made numbers."""
    found = {key: schema[key] for key in _SAME if key in schema}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if schema.get(exclusive):
            found[exclusive] = found.pop(bound)
    if "properties" in schema:
        found["properties"] = {name: as_json_schema(child) for name, child in schema["properties"].items()}
        found["additionalProperties"] = bool(schema.get(FREE))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found[key] = as_json_schema(schema[key])
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") else found


_SAME = (
    *("type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems"),
    *("minProperties", "maxProperties", "required", "anyOf"),
)


def _path(error: jsonschema.ValidationError) -> str:
    """The field: a missing or unknown one is named by its parent's error."""
    path = functools.reduce(_child, error.absolute_path, "")
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return _child(path, next(name for name in missing if repr(name) in error.message))
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        return _child(path, next(name for name in error.instance if name not in known))
    return path


def _child(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")


def nodes(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key], f"{path}[]")


def _broken_rules(schema: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    for rule in schema.get(RULES, ()):
        text, transition = rule["rule"], "oldSelf" in rule["rule"]
        if rule.get("optionalOldSelf"):  # the CEL at hand has no optional values
            assert text.startswith(ONCE), text
            text, transition = text.removeprefix(ONCE), False
            if old is not None:
                continue
        if transition and old is None:
            continue
        names = {"self": typed(schema, value)} | ({"oldSelf": typed(schema, old)} if transition else {})
        if not compiled(text).execute(names):
            yield (path + rule.get("fieldPath", "")).lstrip(".")
    yield from _broken_below(schema, value, old, path)


def _broken_below(schema: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key in value:
                before = old.get(key) if isinstance(old, dict) else None
                yield from _broken_rules(child, value[key], before, _child(path, key))
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _broken_rules(schema["items"], item, None, _child(path, index))


@functools.cache
def compiled(rule: str) -> Any:
    return cel.compile(rule)


def typed(schema: Schema, value: Any) -> Any:
    """As CEL sees it: a number is a double, even where YAML wrote it without a point."""
    if schema.get("type") == "number":
        return float(value)
    if isinstance(value, dict):
        fields, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        return {key: typed(fields.get(key, rest), item) for key, item in value.items()}
    return [typed(schema.get("items", {}), item) for item in value] if isinstance(value, list) else value
