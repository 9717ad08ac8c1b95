"""The message for an unknown field: the field that was meant, where it belongs, or what replaced it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainwright.nearest import nearest
from trainwright_operator.api import declare, mirror
from trainwright_operator.api.manifest import join

MOST_LISTED = 14


def unknown_field(key: str, fields: dict[str, Any], path: str) -> str:
    """The message for ``key`` in the object at ``path``, which has the fields ``fields``."""
    if path.endswith("trainingArguments") and (reason := removed(mirror.snake(key))):
        return reason
    if near := nearest(key, fields):
        return f"is not a field; did you mean {near}?"
    if home := next((place for place, name in _homes() if name == key or name == mirror.camel(key)), None):
        return f"is not a field here; it belongs to {home}"
    if len(fields) <= MOST_LISTED:
        return f"is not a field; the fields are: {', '.join(fields)}"
    return "is not a field; `trainwright explain` lists the fields"


def removed(name: str) -> str | None:
    """What to do about an argument that a manifest does not have, or that transformers has removed."""
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
    """Path and field name of every object in a TrainingJob's spec, outermost first."""
    from trainwright_operator.api.job import JobSpec

    level = [("spec", declare.schema(JobSpec))]
    while level:
        path, schema = level.pop(0)
        for name, child in schema.get("properties", {}).items():
            yield path, name
            if "properties" in child:
                level.append((join(path, name), child))
