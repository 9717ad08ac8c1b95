"""Adafactor (arXiv:1804.04235), with the arithmetic of the one that Hugging Face's Trainer uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trainwright.training.optimizers.errors import OptimizerError


class Adafactor(torch.optim.Optimizer):
    """Adafactor (arXiv:1804.04235): second moments of a matrix kept as one row and one column.

    Args:
        lr: The rate; None with ``relative_step``, which derives it from the step.
        eps: Added to squared gradients; the least scale of a parameter.
        clip_threshold: The root mean square above which an update is scaled down.
        decay_rate: Exponent of the decay of the second moments.
        beta1: Decay of the first moment; None keeps none.
        scale_parameter: Multiply the rate by the root mean square of the parameter.
        relative_step: Take ``min(1e-2, 1 / sqrt(step))`` as the rate.
        warmup_init: With ``relative_step``, begin at ``1e-6 * step``.
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        if lr is not None and relative_step:
            raise OptimizerError("Adafactor: relative_step derives the rate; leave lr away or set relative_step=False")
        if warmup_init and not relative_step:
            raise OptimizerError("Adafactor: warmup_init needs relative_step=True")
        defaults = {
            "lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": beta1,
            "weight_decay": weight_decay, "scale_parameter": scale_parameter, "relative_step": relative_step,
            "warmup_init": warmup_init,
        }  # fmt: skip
        super().__init__(params, defaults)

    @staticmethod
    def _get_lr(group: dict[str, Any], state: dict[str, Any]) -> float:
        rate: float = group["lr"]
        if group["relative_step"]:
            rate = min(1e-6 * state["step"] if group["warmup_init"] else 1e-2, 1.0 / math.sqrt(state["step"]))
        scale: float = max(group["eps"][1], state["RMS"]) if group["scale_parameter"] else 1
        return scale * rate

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None  # step() looked
        if gradient.is_sparse:
            raise OptimizerError("Adafactor takes no sparse gradients; use sgd or adagrad")
        low = parameter.dtype in (torch.float16, torch.bfloat16)
        gradient = gradient.float() if low else gradient
        weight = parameter.float() if low else parameter
        state = self.state[parameter] or self._initial(parameter, gradient, group)
        state["step"] += 1
        state["RMS"] = _rms(weight)
        rate = self._get_lr(group, state)
        update = _scaled(gradient, state, 1.0 - math.pow(state["step"], group["decay_rate"]), group["eps"][0])
        update.div_((_rms(update) / group["clip_threshold"]).clamp_(min=1.0)).mul_(rate)
        if group["beta1"] is not None:
            update = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        if group["weight_decay"] != 0:
            weight.add_(weight, alpha=-group["weight_decay"] * rate)
        weight.sub_(update)
        if low:
            parameter.copy_(weight)

    def _initial(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        state["step"] = 0
        if group["beta1"] is not None:
            state["exp_avg"] = torch.zeros_like(gradient)
        if gradient.dim() >= 2:
            state["exp_avg_sq_row"] = gradient.new_zeros(gradient.shape[:-1])
            state["exp_avg_sq_col"] = gradient.new_zeros(gradient.shape[:-2] + gradient.shape[-1:])
        else:
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        return state


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    rms: torch.Tensor = tensor.norm(2) / tensor.numel() ** 0.5
    return rms


def _scaled(gradient: torch.Tensor, state: dict[str, Any], decay: float, epsilon: float) -> torch.Tensor:
    """The gradient over the root of its second moment, which is updated on the way."""
    squared = gradient**2 + epsilon
    if "exp_avg_sq" in state:
        average: torch.Tensor = state["exp_avg_sq"]
        return average.mul_(decay).add_(squared, alpha=1.0 - decay).rsqrt().mul_(gradient)
    rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
    rows.mul_(decay).add_(squared.mean(dim=-1), alpha=1.0 - decay)
    columns.mul_(decay).add_(squared.mean(dim=-2), alpha=1.0 - decay)
    row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return torch.mul(row_factor, columns.unsqueeze(-2).rsqrt()).mul_(gradient)
