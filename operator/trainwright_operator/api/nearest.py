"""What somebody meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from trainwright_operator.api import declare, mirror
from trainwright_operator.api.manifest import join

MOST_LISTED = 14


def among(word: str, choices: Collection[str]) -> str:
    """``; did you mean steps?`` when one of ``choices`` is near, otherwise nothing."""
    near = nearest(word, choices)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, choices: Collection[str]) -> str | None:
    """The same name in another spelling (snake_case, other capitals), one that begins with it, or the most alike."""
    from difflib import get_close_matches  # only where something is wrong already

    folded = {_fold(choice): choice for choice in choices}
    wanted = _fold(word)
    longer = [name for name in folded if len(wanted) > 2 and name.startswith(wanted)]
    near = [wanted] if wanted in folded else longer or get_close_matches(wanted, folded, n=1, cutoff=0.7)
    return folded[near[0]] if near else None


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


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
