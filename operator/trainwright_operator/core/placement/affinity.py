"""Where the pods of an attempt go: what the job wishes, beside what its pool demands.

A selector that the job leaves out means the pods of the attempt, whose labels it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.job import Together

Object = dict[str, Any]
_REQUIRED, _PREFERRED = (f"{word}DuringSchedulingIgnoredDuringExecution" for word in ("required", "preferred"))
_AMONG_PODS = ("podAffinity", "podAntiAffinity")


def affinity(stated: Mapping[str, Any], labels: Mapping[str, str], pools: Object | None) -> Object | None:
    """The job's affinity and the pool's in one: terms about pods must all hold, so they stand side by side."""
    merged: Object = {**(pools or {}), **stated}
    for kind in _AMONG_PODS:
        if kind in stated:
            merged[kind] = _side_by_side((pools or {}).get(kind, {}), _about(stated[kind], labels))
    return merged or None


def together(topology: Together, labels: Mapping[str, str]) -> Object | None:
    """The affinity that keeps the pods of an attempt in one domain of a node label; None without a label."""
    label = topology.required or topology.preferred
    if not label:
        return None
    term = _selecting({"topologyKey": label}, labels)
    wish = [term] if topology.required else [{"weight": 100, "podAffinityTerm": term}]
    return {"podAffinity": {_REQUIRED if topology.required else _PREFERRED: wish}}


def _about(stated: Mapping[str, Any], labels: Mapping[str, str]) -> Object:
    found = dict(stated)
    if _REQUIRED in stated:
        found[_REQUIRED] = [_selecting(term, labels) for term in stated[_REQUIRED]]
    if _PREFERRED in stated:
        found[_PREFERRED] = [
            {**wish, "podAffinityTerm": _selecting(wish["podAffinityTerm"], labels)} for wish in stated[_PREFERRED]
        ]
    return found


def _side_by_side(one: Mapping[str, Any], other: Mapping[str, Any]) -> Object:
    return {key: [*one.get(key, ()), *other.get(key, ())] for key in (*one, *(key for key in other if key not in one))}


def spread(stated: Iterable[Object], labels: Mapping[str, str]) -> list[Object]:
    return [_selecting(constraint, labels) for constraint in stated]


def _selecting(term: Object, labels: Mapping[str, str]) -> Object:
    own = {name: labels[name] for name in (names.LABEL_JOB_UID, names.LABEL_ATTEMPT)}
    return term if "labelSelector" in term else {**term, "labelSelector": {"matchLabels": own}}
