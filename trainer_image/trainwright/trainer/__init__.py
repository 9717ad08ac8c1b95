"""The Trainer as its users know it: the class that they call and override, and what it looks at in what it is given."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """``from trainwright.trainer import Trainer``, and what else Hugging Face's users import from there."""
    home = importlib.import_module("trainwright.trainer.trainer")
    if not hasattr(home, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)
