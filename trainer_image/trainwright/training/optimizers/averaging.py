"""Schedule-free optimizers: one set of weights is trained, another one, their average, is evaluated and saved.

Such an optimizer turns the weights in place with ``train()`` and ``eval()``, which costs bits. Here the trained weights
are kept meanwhile and come back as they were, also through a checkpoint: an evaluation changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_modes(optimizer: Any) -> bool:
    """Whether the weights must be turned for evaluating and saving."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """The weights to evaluate or to save, inside; those that are trained come back, unless they were away before."""
    if not has_modes(optimizer) or not is_training(optimizer):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def is_training(optimizer: Any) -> bool:
    """Whether the weights are those that are trained."""
    return all(group.get("train_mode", True) for group in optimizer.param_groups)


def begin(optimizer: Any) -> None:
    """Before the first step."""
    if has_modes(optimizer):
        optimizer.train()


def end(optimizer: Any) -> None:
    """After the last step: the model is the averaged one from now on."""
    if has_modes(optimizer) and is_training(optimizer):
        optimizer.eval()
        if isinstance(optimizer, KeptWeights):
            optimizer.kept = None


def with_kept_weights(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """``cls``, which gives the trained weights back to the bit."""
    return type(cls.__name__, (KeptWeights, cls), {})


class KeptWeights(torch.optim.Optimizer):
    """Mixed into a schedule-free optimizer."""

    kept: list[torch.Tensor] | None = None
    """The trained weights, while the model holds the averaged ones."""

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
