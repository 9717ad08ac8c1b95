"""What is said when an optimizer cannot be made."""

from __future__ import annotations

from trainwright.contract import UserError


class OptimizerError(UserError, ValueError):
    """An optimizer cannot be made from what was given."""
