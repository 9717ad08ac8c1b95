"""Schedule-free optimizers: they train one set of weights, and evaluate and save the average of these weights.

These optimizers convert the weights in place with ``train()`` and ``eval()``, which loses precision. This module keeps
a copy of the trained weights and restores them exactly, also from a checkpoint, so evaluation changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_modes(optimizer: Any) -> bool:
    """Whether the weights must be converted for evaluation and saving."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """Use the averaged weights in this context; restore the trained weights after it if they were active before."""
    if not has_modes(optimizer) or not is_training(optimizer):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def is_training(optimizer: Any) -> bool:
    """Whether the model holds the trained weights."""
    return all(group.get("train_mode", True) for group in optimizer.param_groups)


def begin(optimizer: Any) -> None:
    """Prepare the optimizer before the first step."""
    if has_modes(optimizer):
        optimizer.train()


def end(optimizer: Any) -> None:
    """Switch the model to the averaged weights after the last step."""
    if has_modes(optimizer) and is_training(optimizer):
        optimizer.eval()
        if isinstance(optimizer, KeptWeights):
            optimizer.kept = None


def with_kept_weights(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a subclass of ``cls`` that restores the trained weights bit by bit."""
    return type(cls.__name__, (KeptWeights, cls), {})


class KeptWeights(torch.optim.Optimizer):
    """Mixin for a schedule-free optimizer."""

    kept: list[torch.Tensor] | None = None
    """The trained weights, while the model holds the averaged weights."""

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def eval(self) -> None:
        if is_training(self):
            self.kept = [parameter.clone() for parameter in self._parameters()]
        super().eval()  # type: ignore[misc]

    @torch.no_grad()
    def train(self) -> None:
        super().train()  # type: ignore[misc]
        for parameter, kept in zip(self._parameters(), self.kept or (), strict=False):
            parameter.copy_(kept)
        self.kept = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "trained_weights": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = state_dict.get("trained_weights")
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "trained_weights"})
        self.kept = kept if kept is None else [k.to(p) for k, p in zip(kept, self._parameters(), strict=True)]
