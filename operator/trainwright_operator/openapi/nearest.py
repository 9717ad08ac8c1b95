"""What somebody meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from trainwright_operator import mirror
from trainwright_operator.manifest import join

MOST_LISTED = 14


def among(word: str, choices: Collection[str]) -> str:
    """``; did you mean steps?`` when one of ``choices`` is near, otherwise nothing."""
    near = nearest(word, choices)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, choices: Collection[str]) -> str | None:
    """The same name in another spelling (snake_case, other capitals), else the most alike one."""
    from difflib import get_close_matches  # only where something is wrong already

    folded = {_fold(choice): choice for choice in choices}
    near = get_close_matches(_fold(word), folded, n=1, cutoff=0.7)
    return folded[near[0]] if near else None


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def unknown_field(key: str, fields: dict[str, Any], path: str) -> str:
    """What is wrong with ``key`` in the object at ``path``, whose fields are ``fields``."""
    if near := nearest(key, fields):
        return f"is not a field; did you mean {near}?"
    if former := _former(key, path):
        return f"is not a field; use {former}"
    if home := next((place for place, name in _homes() if name == key or name == mirror.camel(key)), None):
        return f"is not a field here; it belongs to {home}"
    if len(fields) <= MOST_LISTED:
        return f"is not a field; there {'is' if len(fields) == 1 else 'are'} {', '.join(fields)}"
    return "is not a field; `trainwright explain` lists those there are"


def _former(key: str, path: str) -> str | None:
    """What became of an argument of older versions of transformers."""
    from trainwright.arguments.names import FORMER

    name = mirror.snake(key)
    if not path.endswith("trainingArguments") or name not in FORMER:
        return mirror.ABSENT_HINT.get(name) if path.endswith("trainingArguments") else None
    return mirror.in_manifest_names(FORMER[name])


def _homes() -> Iterator[tuple[str, str]]:
    """Every object of a TrainingJob's spec with each of its fields, the outermost first."""
    from trainwright_operator.openapi.job import job_spec

    level = [("spec", job_spec())]
    while level:
        path, schema = level.pop(0)
        for name, child in schema.get("properties", {}).items():
            yield path, name
            if "properties" in child:
                level.append((join(path, name), child))
