"""The training loop of a Trainer whose subclass replaces a part of the step.

:class:`~trainwright.training.loop.Loop` calls its own parts, which costs a step nothing. This one asks the Trainer for
them, by the names that Hugging Face gave them.
"""

from __future__ import annotations

from typing import Any

import torch

from trainwright.distributed.strategy import Hooks
from trainwright.training.loop import Loop

PARTS = ("_maybe_log_save_evaluate", "_clip_grad_norm", "_get_grad_norm", "_get_learning_rate")
"""The methods of the Trainer that each step goes through."""


def loop_for(trainer: Any) -> type[Loop]:
    """Which of the two this Trainer needs."""
    return OpenedLoop if any(trainer._overrides(name) for name in PARTS) else Loop


class OpenedLoop(Loop):
    """Clipping, the learning rate, and what follows a step are the Trainer's."""

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
            None,
            trainer.state.epoch,
            self.ignore_keys,
            self.start_time,
            learning_rate=self.learning_rate,
        )
        if not losses.any():  # taken over
            self.meter.read()
