"""A whole model on one process, with torch's optimizers, schedules and gradient scaler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from trainwright.distributed.ranks import Ranks
from trainwright.distributed.strategy import Hooks, Kind, Strategy
from trainwright.distributed.wrapping import unwrap

AT_ONCE: AbstractContextManager[None] = nullcontext()


class OneProcess(Strategy):
    """Every rank holds the whole model; a single process exchanges nothing.

    Args:
        fp16: Scale the losses, because gradients with 16 bits underflow.
        exchanges_every_batch: Exchange gradients after each micro-batch, not only after the last of a step.
    """

    def __init__(
        self,
        device: torch.device,
        ranks: Ranks,
        data: Ranks | None = None,
        *,
        fp16: bool = False,
        exchanges_every_batch: bool = False,
    ) -> None:
        super().__init__(device, ranks, data)
        self._fp16 = fp16
        self._exchanges_every_batch = exchanges_every_batch
        self._no_sync: Callable[[], AbstractContextManager[Any]] | None = None
        self._backward_and_step: Callable[[torch.Tensor], Any] | None = None

    def new_scaler(self) -> torch.amp.GradScaler | None:
        scaler = self.scaler = torch.amp.GradScaler(self.device.type) if self._fp16 else None
        return scaler

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def prepare(
        self,
        model: nn.Module,
        make_optimizer: Callable[[], Any],
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        max_steps: int = 0,
    ) -> tuple[nn.Module, Any]:
        optimizer = make_optimizer()
        return (wrap or self.wrap)(model), optimizer

    def start(self, model: nn.Module, optimizer: Any, schedule: Any, scaler: Any, hooks: Hooks) -> None:
        self.optimizer, self.schedule, self.scaler, self.hooks = optimizer, schedule, scaler, hooks
        self.parameters = list(model.parameters())
        self._no_sync = None if self._exchanges_every_batch else getattr(model, "no_sync", None)
        self._backward_and_step = getattr(optimizer, "backward_and_step", None)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        return AT_ONCE if last or self._no_sync is None else self._no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        if self._backward_and_step is not None:  # LOMO never holds all gradients at once
            self._backward_and_step(loss)
        else:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self, max_norm: float) -> tuple[Any, bool]:
        hooks = self.hooks
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if hooks.clip is not None:
            norm = hooks.clip()
        else:
            norm = self.clip(self.parameters, max_norm) if max_norm > 0 else self.norm(self.parameters)
        verdict = hooks.judge(norm) if hooks.judge is not None else None
        hooks.before_step()
        skipped = self._step() if verdict is None else self._step_unless(verdict)
        hooks.after_step()
        if self.schedule is not None and not skipped:
            self.schedule.step()
        self.zero_grad()
        return norm, skipped

    def _step(self) -> bool:
        """Step the optimizer; return whether it skipped the step because gradients overflowed."""
        if self.scaler is None:
            self.optimizer.step()
            return False
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() < scale)

    def _step_unless(self, verdict: torch.Tensor) -> bool:
        """Step the optimizer if ``verdict`` is 0; return whether it is known that it did not step.

        A step that is not taken leaves the scale as it is.
        """
        if self.hooks.on_device:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, verdict
            try:
                self.optimizer.step()
            finally:
                del self.optimizer.grad_scale, self.optimizer.found_inf
            return False
        if not verdict.item():
            return self._step()
        if self.scaler is not None:
            self.scaler.update(self.scaler.get_scale())
        return True

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        return clip_grad_norm_(parameters, max_norm)

    def norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        return get_total_norm([p.grad for p in parameters if p.grad is not None])

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state(self, kind: Kind, part: Any, whole: bool = True) -> dict[str, Any]:
        state: dict[str, Any] = (unwrap(part) if kind == "model" else part).state_dict()
        return state

    def load(self, kind: Kind, part: Any, state: dict[str, Any]) -> None:
        (unwrap(part) if kind == "model" else part).load_state_dict(state)
