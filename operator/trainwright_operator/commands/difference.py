"""The difference between two plans, field by field: ``trainwright plan --diff POOL``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainwright_operator.api import names

Object = Mapping[str, Any]
Fields = dict[str, Any]

RED, GREEN, YELLOW, BOLD, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
_SHORT = (
    ("spec.template.spec.containers.trainer.", ""),
    (f"spec.template.metadata.annotations.{names.ANNOTATION_RESOLVED_JOB}.", "resolved job: "),
    ("spec.template.spec.", "pod."),
    ("spec.template.metadata.", "pod."),
)
_KEYS = ("name", "key", "mountPath")


def coloured() -> bool:
    """On a terminal, unless NO_COLOR is set; FORCE_COLOR colours a pipe too."""
    return not os.environ.get("NO_COLOR") and (sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR")))


def paint(line: str, colour: bool) -> str:
    """A line of a difference, coloured by its first character."""
    tint = {"-": RED, "+": GREEN, "~": YELLOW}.get(line[:1], BOLD if line and not line.startswith((" ", "@")) else "")
    return f"{tint}{line}{PLAIN}" if colour and tint else line


def lines(before: Iterable[Object], after: Iterable[Object]) -> Iterator[str]:
    """``-`` is only before, ``+`` only after, ``~`` in both with different values; empty if nothing differs."""
    old, new = ({_title(one): one for one in objects} for objects in (before, after))
    for title in dict.fromkeys([*old, *new]):
        if title not in new or title not in old:
            yield f"{'-' if title in old else '+'} {title}{_size(old.get(title) or new[title])}"
        elif found := list(_changes(_fields(old[title]), _fields(new[title]))):
            yield title
            yield from _aligned(found)


def _title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"


def _size(obj: Object) -> str:
    pods = obj["spec"].get("completions") if obj["kind"] == "Job" else None
    return f" ({pods} {'pod' if pods == 1 else 'pods'})" if pods else ""


def _changes(old: Fields, new: Fields) -> Iterator[tuple[str, str, str]]:
    for path in sorted({*old, *new}):
        if path not in new:
            yield "-", path, _shown(old[path])
        elif path not in old:
            yield "+", path, _shown(new[path])
        elif old[path] != new[path]:
            yield "~", path, f"{_shown(old[path])} -> {_shown(new[path])}"


def _aligned(found: list[tuple[str, str, str]]) -> Iterator[str]:
    width = max(len(path) for _, path, _ in found)
    for sign, path, value in found:
        yield f"{sign}   {path:<{width}}  {value}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and value and all(not isinstance(child, Mapping | list) for child in value.values()):
        return ", ".join(f"{key}: {_shown(child)}" for key, child in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _fields(obj: Object) -> Fields:
    """Every value by its path; an item of a list is identified by its name, as in Kubernetes."""
    return {_shortened(path): value for path, value in _walk(obj, "") if names.ANNOTATION_HASH not in path}


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if path.endswith(names.ANNOTATION_RESOLVED_JOB):
        value = json.loads(value)
    if path.endswith("spec.affinity"):
        yield from _affinity(value, path)
    elif isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _walk(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _walk_item(item, path, index)
    else:
        yield path, value


def _walk_item(item: Mapping[str, Any], path: str, index: int) -> Iterator[tuple[str, Any]]:
    """A variable is shown as its value or its source; an item without nested objects is one line."""
    key = next((key for key in _KEYS if key in item), None)
    rest = {name: child for name, child in item.items() if name != key}
    place = f"{path}.{item[key]}" if key else f"{path}[{index}]"
    if set(rest) == {"value"}:
        yield place, rest["value"]
    elif set(rest) == {"valueFrom"} and "fieldRef" in rest["valueFrom"]:
        yield place, f"from {rest['valueFrom']['fieldRef']['fieldPath']}"
    elif any(isinstance(child, Mapping | list) for child in rest.values()):
        yield from _walk(rest, place)
    else:
        yield place, rest or ""


def _affinity(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Only the topology keys: full terms would fill a screen, and follow from the job's name."""
    for kind, terms in value.items():
        keys = dict.fromkeys(term["topologyKey"] for listed in terms.values() for term in listed)
        yield f"{path}.{kind}", f"by {', '.join(keys)}"


def _shortened(path: str) -> str:
    return next((short + path.removeprefix(long) for long, short in _SHORT if path.startswith(long)), path)
