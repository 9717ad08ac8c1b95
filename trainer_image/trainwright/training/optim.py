"""Optimizers by the names of ``optim``: torch's own, and Adafactor as Hugging Face's Trainer configures it.

Weight decay applies to the weights of layers, never to biases and normalisation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from trainwright.contract import UserError

_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


class OptimizerError(UserError, ValueError):
    """An optimizer cannot be made from what was given."""


def get_decay_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that decay: in no LayerNorm, and not named as a bias or a norm."""
    return list(_decayed(model, ""))


def _decayed(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if not isinstance(child, nn.LayerNorm):
            yield from _decayed(child, f"{prefix}{name}.")
    for name in module._parameters:
        if not _UNDECAYED.search(f"{prefix}{name}".lower()):
            yield f"{prefix}{name}"


def parameter_groups(model: nn.Module, decayed: list[str], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: those that decay, and those that do not."""
    names = frozenset(decayed)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trainable if name in names], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if name not in names], "weight_decay": 0.0},
    ]


def parse_optim_args(text: str | None) -> dict[str, str]:
    """``"momentum=0.9, nesterov=true"`` as a dict of texts."""
    pairs = [pair.partition("=") for pair in (text or "").replace(" ", "").split(",") if pair]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise OptimizerError(f"optim_args: {key}{equals}{value!r} is not of the form key=value")
    return {key: value for key, _, value in pairs}


def _flag(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


def _read(reader: Callable[[str], Any], key: str, text: str) -> Any:
    try:
        return reader(text)
    except ValueError:
        raise OptimizerError(f"optim_args: {key}={text} is no number") from None


CLASSES = {
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
}
"""Name -> class: torch's own, but for Adafactor."""

READERS: dict[str, dict[str, Callable[[str], Any]]] = {
    "sgd": {"momentum": float, "dampening": float, "weight_decay": float, "nesterov": _flag},
    "adagrad": {"lr_decay": float, "weight_decay": float, "eps": float},
    "rmsprop": {"momentum": float, "alpha": float, "eps": float, "weight_decay": float, "centered": _flag},
}
"""Name -> the ``optim_args`` that it takes, and how each is read from its text."""


def get_optimizer_cls_and_kwargs(args: Any) -> tuple[Any, dict[str, Any]]:
    """The class that ``args.optim`` names and its keyword arguments, the learning rate among them."""
    name = getattr(args.optim, "value", args.optim)
    if name not in CLASSES:
        raise NotImplementedError(f"optim={name!r} is not built yet; built are {', '.join(CLASSES)}")
    readers, given = READERS.get(name, {}), parse_optim_args(args.optim_args)
    if unknown := [key for key in given if key not in readers]:
        raise OptimizerError(f"optim_args: {name} takes {', '.join(readers) or 'none'}, not {', '.join(unknown)}")
    kwargs = {"lr": args.learning_rate, **{key: _read(readers[key], key, value) for key, value in given.items()}}
    if name == "adafactor":
        return Adafactor, kwargs | {"scale_parameter": False, "relative_step": False}
    if CLASSES[name] == "AdamW":
        kwargs |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        kwargs |= {"fused": True} if name == "adamw_torch_fused" else {}
    return getattr(torch.optim, CLASSES[name]), kwargs


def create_optimizer(trainer: Any, model: nn.Module | None = None) -> Any:
    """The optimizer of ``trainer``, made from its arguments unless it has one."""
    if trainer.optimizer is None:
        model = trainer.model if model is None else model
        groups = parameter_groups(model, trainer.get_decay_parameter_names(model), trainer.args.weight_decay)
        optimizer, kwargs = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(
            trainer.args, model
        )
        if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
            trainer.optimizer = optimizer(groups, **kwargs)
        else:  # a factory, for optimizers that sort the parameters themselves
            trainer.optimizer = optimizer()(model, **kwargs)
    return trainer.optimizer


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
        rate = group["lr"]
        if group["relative_step"]:
            rate = min(1e-6 * state["step"] if group["warmup_init"] else 1e-2, 1.0 / math.sqrt(state["step"]))
        return max(group["eps"][1], state["RMS"]) * rate if group["scale_parameter"] else rate

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
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
        if parameter.grad.is_sparse:
            raise OptimizerError("Adafactor takes no sparse gradients; use sgd or adagrad")
        low = parameter.dtype in (torch.float16, torch.bfloat16)
        gradient = parameter.grad.float() if low else parameter.grad
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
        state = self.state[parameter]
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
    return tensor.norm(2) / tensor.numel() ** 0.5


def _scaled(gradient: torch.Tensor, state: dict[str, Any], decay: float, epsilon: float) -> torch.Tensor:
    """The gradient over the root of its second moment, which is updated on the way."""
    squared = gradient**2 + epsilon
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"].mul_(decay).add_(squared, alpha=1.0 - decay).rsqrt().mul_(gradient)
    rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
    rows.mul_(decay).add_(squared.mean(dim=-1), alpha=1.0 - decay)
    columns.mul_(decay).add_(squared.mean(dim=-2), alpha=1.0 - decay)
    row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return torch.mul(row_factor, columns.unsqueeze(-2).rsqrt()).mul_(gradient)
