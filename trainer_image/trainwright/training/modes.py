"""Keep every module of a model in training mode, at low cost.

Submodules can differ from the outermost module: ``from_pretrained`` returns a model in evaluation mode, also if a new
module in training mode wraps it, and a callback may switch one submodule. ``model.train()`` at every step would fix
that, but it sets an attribute of every module; reading the flags is far cheaper.
"""

from __future__ import annotations

from torch import nn


class TrainingMode:
    """Call this with the wrapped module before each forward pass of training."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._parts: list[nn.Module] = []

    def __call__(self, model: nn.Module) -> None:
        if model is not self._model:
            self._enter(model)
        for part in self._parts:
            if not part.training:
                self._enter(model)
                break

    def _enter(self, model: nn.Module) -> None:
        """Set training mode, except for modules that the model's ``train`` keeps in evaluation mode (frozen norms)."""
        model.train()
        self._model, self._parts = model, [part for part in model.modules() if part.training]
