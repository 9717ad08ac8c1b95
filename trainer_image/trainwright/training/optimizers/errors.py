"""Errors for an optimizer that cannot be made."""

from __future__ import annotations

from trainwright.contract import UserError


class OptimizerError(UserError):
    """An optimizer cannot be made from the given arguments."""


class MissingOptimizerError(OptimizerError, ImportError):
    """The package of the optimizer is not installed."""


class AloneError(OptimizerError, NotImplementedError):
    """The optimizer works in one process only."""
