"""What is wrong with the name of a field that does not exist: its right spelling, its place, or what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainwright.nearest import nearest
from trainwright_operator.api import declare, mirror
from trainwright_operator.api.manifest import join

MOST_LISTED = 14


def unknown_field(key: str, fields: dict[str, Any], path: str) -> str:
    """What is wrong with ``key`` in the object at ``path``, whose fields are ``fields``."""
    if path.endswith("trainingArguments") and (reason := gone(mirror.snake(key))):
        return reason
    if near := nearest(key, fields):
        return f"is not a field; did you mean {near}?"
    if home := next((place for place, name in _homes() if name == key or name == mirror.camel(key)), None):
        return f"is not a field here; it belongs to {home}"
    if len(fields) <= MOST_LISTED:
        return f"is not a field; there {'is' if len(fields) == 1 else 'are'} {', '.join(fields)}"
    return "is not a field; `trainwright explain` lists those there are"


def gone(name: str) -> str | None:
    """What became of an argument that a manifest has no field for, or that older versions of transformers had."""
    from trainwright.arguments.names import FORMER

    if name in mirror.ABSENT:
        return f"is not a field: {mirror.ABSENT[name]}; remove it"
    former = FORMER.get(name)
    if former is None:
        return None
    if former.startswith("nothing: "):
        return f"is not needed: {former.removeprefix('nothing: ')}; remove it"
    return f"is not a field; use {mirror.in_manifest_names(former)}"


def _homes() -> Iterator[tuple[str, str]]:
    """Every object of a TrainingJob's spec with each of its fields, the outermost first."""
    from trainwright_operator.api.job import JobSpec

    level = [("spec", declare.schema(JobSpec))]
    while level:
        path, schema = level.pop(0)
        for name, child in schema.get("properties", {}).items():
            yield path, name
            if "properties" in child:
                level.append((join(path, name), child))
