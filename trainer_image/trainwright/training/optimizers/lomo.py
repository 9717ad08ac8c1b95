"""LOMO and AdaLOMO: each gradient is applied and freed within the backward pass, so they never exist all at once."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_STATISTICS = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")
"""AdaLOMO's state of each parameter, by name, outside of torch's ``state``."""


class FusedBackward(torch.optim.Optimizer):
    """Adapter for an optimizer of lomo-optim: schedules can set its rate, and checkpoints hold its state.

    Args:
        cls: ``lomo_optim.Lomo`` or ``AdaLomo``.
        model: The model whose parameters it updates.
    """

    def __init__(self, cls: Any, model: nn.Module, lr: float, **settings: Any) -> None:
        self.inner = cls(model, lr=lr, **settings)
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": lr})
        logger.warning("the optimizer steps within the backward pass: gradients are not clipped, their norm is 0")

    def backward_and_step(self, loss: torch.Tensor) -> None:
        """Update every parameter at the current rate; replaces ``loss.backward()``."""
        self.inner.fused_backward(loss, self.param_groups[0]["lr"])

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing, because the backward pass updates the parameters."""

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self.inner, name) for name in _STATISTICS if hasattr(self.inner, name)}
        return {**super().state_dict(), "statistics": kept, "step_num": getattr(self.inner, "step_num", 0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        for name, tensors in state_dict["statistics"].items():
            for parameter, tensor in tensors.items():
                getattr(self.inner, name)[parameter].copy_(tensor)
        if hasattr(self.inner, "step_num"):
            self.inner.step_num = state_dict["step_num"]
