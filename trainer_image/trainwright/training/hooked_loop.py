"""The training loop for a subclass of the Trainer that overrides a part of the step.

:class:`~trainwright.training.loop.Loop` calls its internal parts, at no cost. This loop calls the Trainer's methods
with Hugging Face's names instead.
"""

from __future__ import annotations

from typing import Any

import torch

from trainwright.distributed.strategy import Hooks
from trainwright.training.loop import Loop

PARTS = ("_maybe_log_save_evaluate", "_clip_grad_norm", "_get_grad_norm", "_get_learning_rate")
"""The Trainer's methods that each step can call."""


def loop_for(trainer: Any) -> type[Loop]:
    """Return the loop class that this Trainer needs."""
    return OpenedLoop if any(trainer._overrides(name) for name in PARTS) else Loop


class OpenedLoop(Loop):
    """A loop that uses the Trainer's methods for clipping, the learning rate, and logging after a step."""

    def hooks(self) -> Hooks:
        return super().hooks()._replace(clip=self.clip)

    def clip(self) -> Any:
        norm = self.trainer._clip_grad_norm(self.model) if self.max_grad_norm > 0 else None
        return self.trainer._get_grad_norm(self.model, grad_norm=norm)

    def rate(self) -> float:
        return float(self.trainer._get_learning_rate())

    def obey(self) -> None:
        trainer = self.trainer
        losses = torch.tensor(self.meter.peek())
        trainer._maybe_log_save_evaluate(
            losses,
            self.grad_norm,
            self.model,
            trainer._trial,
            trainer.state.epoch,
            self.ignore_keys,
            self.start_time,
            learning_rate=self.learning_rate,
        )
        if not losses.any():  # the method logged the losses and reset them
            self.meter.read()
