"""Merge patches (RFC 7386) between two states of an object, and what kind of change one is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

GANG = frozenset({"nodes", "display"})
"""How many pods are ready: while a gang starts, the next count is a moment away."""
COUNTS = GANG | {"gang", "progress", "metrics", "best", "checkpoint"}
"""What trainers tell, and how many pods there are: it changes all the time, and no condition depends on it."""

_NUMBERS = re.compile(r"\d[\w.]*")


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest patch that turns ``before`` into ``after``; empty when they are equal."""
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
    """True for a patch of the status ``before`` that only brings newer numbers; all that is new is written at once."""
    rest = patch.keys() - COUNTS
    if rest != {"conditions"}:
        return not rest
    known, new = before.get("conditions") or (), patch["conditions"] or ()
    return len(known) == len(new) and all(map(_reworded, known, new))


def _reworded(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """The scheduler counts nodes anew at every change of the cluster, and a quota what is used of it."""
    if {**before, "message": ""} != {**after, "message": ""}:
        return False
    known, new = before.get("message", ""), after.get("message", "")
    scheduling = after.get("reason") == "Unschedulable" and bool(known)
    return scheduling or _NUMBERS.sub("", known) == _NUMBERS.sub("", new)


def only_counts_pods(patch: Mapping[str, Any]) -> bool:
    """True for a patch that may be out of date as soon as it is written."""
    return patch.keys() <= GANG
