"""What is said when an optimizer cannot be made."""

from __future__ import annotations

from trainwright.contract import UserError


class OptimizerError(UserError):
    """An optimizer cannot be made from what was given."""


class MissingOptimizerError(OptimizerError, ImportError):
    """The package of the optimizer is not installed."""


class AloneError(OptimizerError, NotImplementedError):
    """The optimizer works in one process only."""
