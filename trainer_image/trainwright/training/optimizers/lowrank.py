"""Low-rank optimizers, GaLore and APOLLO: which weights they project, and how they step layer by layer."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from trainwright.training.optimizers.errors import OptimizerError

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, dict[str, Any]] = {
    "galore": {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"},
    "apollo": {
        "rank": 128,
        "proj": "random",
        "scale_type": "channel",
        "update_proj_gap": 200,
        "scale": 1.0,
        "proj_type": "std",
    },
}
"""Settings of the projection, as Hugging Face's Trainer sets them where ``optim_args`` does not."""


def target_weights(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Return the names of the weights of the linear layers that ``optim_target_modules`` selects.

    Args:
        targets: A regular expression for the whole name of a layer, ``all-linear``, or a list of regular expressions
            and parts of names.

    Raises:
        OptimizerError: No linear layer matches.
    """
    every = isinstance(targets, str) and targets.replace("_", "-") == "all-linear"
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = [f"{name}.weight" for name in linear if every or _is_target(name, targets)]
    if not found:
        raise OptimizerError(
            f"optim_target_modules: {targets!r} names no linear layer of {type(model).__name__}; "
            f"it has {', '.join(sorted(linear)[:5]) or 'none'}"
        )
    return found


def _is_target(name: str, targets: str | list[str]) -> bool:
    try:
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(target in name or re.fullmatch(target, name) for target in targets)
    except re.error as error:
        raise OptimizerError(f"optim_target_modules: {targets!r} is no regular expression: {error}") from None


def groups_with_targets(
    groups: Iterable[dict[str, Any]], targets: Iterable[nn.Parameter], projection: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Split each group in two; the group of projected parameters has the settings of the projection."""
    chosen = {id(parameter) for parameter in targets}
    parted = []
    for group in groups:
        inside = [p for p in group["params"] if id(p) in chosen]
        outside = [p for p in group["params"] if id(p) not in chosen]
        parted += [{**group, "params": outside}] if outside else []
        parted += [{**group, "params": inside, **projection}] if inside else []
    return parted


class Layerwise(torch.optim.Optimizer):
    """One optimizer per parameter, which steps when the gradient is ready and then frees the gradient.

    Its groups are those of its members, so that a schedule reaches them; ``step`` and ``zero_grad`` do nothing.
    Clipping is impossible, because the gradients are freed before it.

    Args:
        groups: Parameter groups.
        make: Makes the optimizer of one parameter from its group.
    """

    def __init__(self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], Any], lr: float) -> None:
        self.members = {p: make([{**group, "params": [p]}]) for group in groups for p in group["params"]}
        super().__init__([group for member in self.members.values() for group in member.param_groups], {"lr": lr})
        for parameter in self.members:
            parameter.register_post_accumulate_grad_hook(self._update)
        logger.warning("the optimizer steps within the backward pass: gradients are not clipped, their norm is 0")

    def _update(self, parameter: nn.Parameter) -> None:
        self.members[parameter].step()
        parameter.grad = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Done already."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Done already."""

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        members = state_dict["members"]
        if len(members) != len(self.members):
            raise ValueError(f"it is of {len(members)} parameters, and {len(self.members)} are trained")
        for member, state in zip(self.members.values(), members, strict=True):
            member.load_state_dict(state)
        self.param_groups = [group for member in self.members.values() for group in member.param_groups]
