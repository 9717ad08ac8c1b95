"""Merge patches (RFC 7386) between two states of an object, and what kind of change one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GANG = frozenset({"nodes", "display"})
"""How many pods are ready: while a gang starts, the next count is a moment away."""
COUNTS = GANG | {"progress", "metrics", "best", "checkpoint"}
"""What trainers tell, and how many pods there are: it changes all the time, and no condition depends on it."""


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


def can_wait(patch: Mapping[str, Any]) -> bool:
    """True for a patch of a status that only brings newer numbers; a condition or an attempt is written at once."""
    return patch.keys() <= COUNTS


def only_counts_pods(patch: Mapping[str, Any]) -> bool:
    """True for a patch that may be out of date as soon as it is written."""
    return patch.keys() <= GANG
