"""Checks of the values that the user's evaluation functions return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright.arguments.errors import kind_of
from trainwright.contract import UserError


def named_numbers(metrics: Any) -> dict[str, Any]:
    """Return the result of ``compute_metrics``. Raises :class:`UserError` unless it maps names to values."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    raise UserError(
        f"compute_metrics: it returned {kind_of(metrics)}; return a dict of names and numbers, as {{'accuracy': 0.5}}"
    )


def shown_to_metrics(kept: Any) -> Any:
    """Return the result of ``preprocess_logits_for_metrics``. Raises :class:`UserError` if it is None."""
    if kept is None:
        raise UserError("preprocess_logits_for_metrics: it returned None; return what compute_metrics shall see")
    return kept
