"""Training mode for every part of a model, kept up at hardly any cost.

The outermost module does not speak for its parts: what ``from_pretrained`` returns is in evaluation mode, also within
a new module that is not, and a callback may switch a part for itself. ``model.train()`` at every step would put that
right, but it sets an attribute of every module; looking at their flags is far cheaper.
"""

from __future__ import annotations

from torch import nn


class TrainingMode:
    """Call it with the module that forward goes through, before each forward of training."""

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
        """A model whose own ``train`` leaves a part in evaluation mode (a frozen batch norm) keeps it there."""
        model.train()
        self._model, self._parts = model, [part for part in model.modules() if part.training]
