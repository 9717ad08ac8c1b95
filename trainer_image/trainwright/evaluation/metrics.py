"""What the user's functions of an evaluation return, looked at before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright.arguments.errors import kind_of
from trainwright.contract import UserError


def named_numbers(metrics: Any) -> dict[str, Any]:
    """What ``compute_metrics`` returned. Raises :class:`UserError` for anything but names with values."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    raise UserError(
        f"compute_metrics: it returned {kind_of(metrics)}; return a dict of names and numbers, as {{'accuracy': 0.5}}"
    )


def shown_to_metrics(kept: Any) -> Any:
    """What ``preprocess_logits_for_metrics`` returned. Raises :class:`UserError` where that is nothing."""
    if kept is None:
        raise UserError("preprocess_logits_for_metrics: it returned None; return what compute_metrics shall see")
    return kept
