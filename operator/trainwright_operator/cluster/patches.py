"""Merge patches (RFC 7386) between two states of an object, and which of them may be delayed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

GANG = frozenset({"nodes", "display"})
"""Counts of ready pods; while a gang starts they change every moment."""
COUNTS = GANG | {
    "gang",
    "progress",
    "metrics",
    "memory",
    "best",
    "checkpoint",
    "goodput",
    "acceleratorSeconds",
    "cost",
    "slowest",
    "anomalies",
}
"""Progress and counts of pods: they change all the time, and no condition depends on them."""

_NUMBERS = re.compile(r"\d[\w.]*")


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest patch that turns ``before`` into ``after``; empty if they are equal."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            if below := merge_patch(known, value):
                patch[key] = below
        elif key not in before or known != value:
            patch[key] = value
    return patch


def can_wait(patch: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """True for a patch of status ``before`` that only updates numbers; other changes are written immediately."""
    rest = patch.keys() - COUNTS
    if rest != {"conditions"}:
        return not rest
    known, new = before.get("conditions") or (), patch["conditions"] or ()
    return len(known) == len(new) and all(map(_reworded, known, new))


def _reworded(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two messages differ only in numbers, such as nodes counted by the scheduler or use of a quota."""
    if {**before, "message": ""} != {**after, "message": ""}:
        return False
    known, new = before.get("message", ""), after.get("message", "")
    scheduling = after.get("reason") == "Unschedulable" and bool(known)
    return scheduling or _NUMBERS.sub("", known) == _NUMBERS.sub("", new)


def only_counts_pods(patch: Mapping[str, Any]) -> bool:
    """True for a patch that may be outdated as soon as it is written."""
    return patch.keys() <= GANG
