"""Optimizers with state that torch's ``state_dict`` does not save well: objects, and tensors outside ``state``.

A checkpoint holds data and no code, and refers to a parameter by its index, never by its identity.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

_PROJECTORS = {
    "galore_torch.galore_projector:GaLoreProjector",
    "apollo_torch.random_projector:GradientProjector",
    "apollo_torch.svd_projector:GaLoreProjector",
}


def plainly_saved(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a subclass of ``cls`` (of galore_torch, apollo_torch, grokadamw) that saves and restores plain data."""
    mixin = StateInGroups if cls.__module__.startswith("grokadamw") else Projectors
    return type(cls.__name__, (mixin, cls), {})


class Projectors(torch.optim.Optimizer):
    """Mixin for an optimizer that keeps an object under ``projector`` in the state of a parameter."""

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        states = {key: _plain(state) for key, state in saved["state"].items()}
        return {**saved, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = {key: dict(state) for key, state in state_dict["state"].items()}
        projectors = {key: state.pop("projector") for key, state in states.items() if "projector" in state}
        super().load_state_dict({**state_dict, "state": states})
        for key, parameter in zip(_keys(state_dict), self._parameters(), strict=True):
            if key in projectors:
                self.state[parameter]["projector"] = _projector(parameter.device, **projectors[key])

    def _parameters(self) -> Iterator[torch.Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])


def _keys(state_dict: dict[str, Any]) -> list[Any]:
    return [key for group in state_dict["param_groups"] for key in group["params"]]


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    if (projector := state.get("projector")) is None:
        return state
    kind = f"{type(projector).__module__}:{type(projector).__qualname__}"
    return {**state, "projector": {"kind": kind, **vars(projector)}}


def _projector(device: torch.device, kind: str, **attributes: Any) -> Any:
    if kind not in _PROJECTORS:
        raise ValueError(f"a projector of the unknown kind {kind}")
    module, _, name = kind.partition(":")
    projector = object.__new__(getattr(importlib.import_module(module), name))
    vars(projector).update({key: _moved(value, device) for key, value in attributes.items()})
    return projector


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


class StateInGroups(torch.optim.Optimizer):
    """Mixin for an optimizer that keeps its state in its groups, under ``state``, with parameters as keys."""

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        for group, own in zip(saved["param_groups"], self.param_groups, strict=True):
            state = group.pop("state", {})
            group["states"] = [state.get(parameter) for parameter in own["params"]]
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = [dict(group) for group in state_dict["param_groups"]]
        states = [group.pop("states") for group in groups]
        super().load_state_dict({**state_dict, "param_groups": groups})
        for group, saved in zip(self.param_groups, states, strict=True):
            pairs = zip(group["params"], saved, strict=True)
            group["state"] = {parameter: state for parameter, state in pairs if state is not None}
