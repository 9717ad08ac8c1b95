"""Stopped and resumed against left alone, with dropout: to the bit, plain, with an adapter, and within a user's module.

The same runs show the mode of every part: each is handed over in evaluation mode, as ``from_pretrained`` hands out a
model, under an outermost module that is new and so says that it trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from sweep.architectures import Architecture
from sweep.data import samples
from sweep.runs import caught, folder, trainer_for

STEPS, STOPPED = 4, 2
DROPOUT = 0.1
LABELS = ("labels", "start_positions", "end_positions")


class Held(nn.Module):
    """A user's module that holds a model and hands on what it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)


def adapted(architecture: Architecture, seed: int) -> nn.Module:
    base = architecture.model(0, DROPOUT)  # the checkpoint of an adapter holds the adapter alone
    torch.manual_seed(seed)
    settings = {"r": 2, "target_modules": linear(base), "lora_dropout": DROPOUT, **architecture.lora}
    return get_peft_model(base, LoraConfig(**settings))


def linear(model: nn.Module) -> list[str]:
    """The layers that an adapter goes to: linear ones whose weights are theirs alone.

    On a head, ``peft`` saves no adapter of a model that has no embeddings (those of speech).
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name.removesuffix(".weight") for alike in names.values() if len(alike) > 1 for name in alike}
    tied |= {"lm_head"} if model.main_input_name == "input_values" else set()
    kinds = (nn.Linear, Conv1D)
    return [name for name, part in model.named_modules() if isinstance(part, kinds) and name not in tied]


WAYS: dict[str, Callable[[Architecture, int], nn.Module]] = {
    "plain": lambda architecture, seed: architecture.model(seed, DROPOUT),
    "lora": adapted,
    "held": lambda architecture, seed: Held(architecture.model(seed, DROPOUT)),
}


class Modes:
    """Notes, at each call of the outermost module, which parts are in a mode that they should not be in."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.told = model, model.training
        self.right: dict[bool, list[bool]] = {}
        parts = [part.training for part in model.modules()]
        for trains in (True, False):  # a model may keep a part in evaluation mode by its own train()
            model.train(trains)
            self.right[trains] = [part.training for part in model.modules()]
        for part, trained in zip(model.modules(), parts, strict=True):
            part.training = trained
        self.wrong: set[str] = set()
        self.calls = {True: 0, False: 0}
        model.register_forward_pre_hook(self.look)

    def look(self, *_: Any) -> None:
        trains = torch.is_grad_enabled()
        self.calls[trains] += 1
        for part, right in zip(self.model.named_modules(), self.right[trains], strict=True):
            if part[1].training is not right:
                self.wrong.add(f"{part[0]} in {'training' if trains else 'evaluation'}")


def state_of(model: nn.Module, way: str) -> dict[str, torch.Tensor]:
    """All that a checkpoint of it holds: that of an adapter has no buffers of the model under it (batch norm's)."""
    held = dict(model.named_parameters()) if way == "lora" else model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in held.items()}


def run(output: str, architecture: Architecture, way: str, seed: int, resume: str | None = None) -> dict[str, Any]:
    model = WAYS[way](architecture, seed)
    modes = Modes(model)
    data = samples(architecture, 16, ragged=True)
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS,
        "eval_strategy": "steps", "eval_steps": STOPPED, "save_strategy": "no" if resume else "steps",
        "save_steps": STOPPED,
    }  # fmt: skip
    if way == "held":
        options |= {"remove_unused_columns": False, "label_names": [name for name in data[0] if name in LABELS]}
        data = [{name: value for name, value in each.items() if taken(model, name)} for each in data]
    trainer = trainer_for(output, model, data, data[:4], **options)
    torch.rand(seed + 1)  # a new process has generators of its own
    trainer.train(resume_from_checkpoint=resume)
    keys = ("step", "loss", "grad_norm", "eval_loss")
    history = [{key: entry[key] for key in keys if key in entry} for entry in trainer.state.log_history]
    if way == "lora" and any(isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d) for part in model.modules()):
        history = [entry for entry in history if "eval_loss" not in entry]
    return {"state": state_of(model, way), "history": history[:-1], "modes": modes}


def taken(model: Any, name: str) -> bool:
    return name in inspect.signature(model.model.forward).parameters


def resumed(architecture: Architecture) -> dict[str, Any]:
    """By way, what :func:`both` sees; and whether a user's module around the model changes any figure."""
    seen: dict[str, Any] = {way: caught(partial(both, way=way), architecture) for way in WAYS}
    logs = [seen[way].pop("log") for way in WAYS if isinstance(seen[way], dict)]
    return {**seen, "held as plain": len(logs) < len(WAYS) or logs[0] == logs[-1]}


def both(architecture: Architecture, way: str) -> dict[str, Any]:
    """What differs between a run left alone and one resumed at its middle, and which parts were in a wrong mode."""
    with folder() as output:
        alone = run(f"{output}/a", architecture, way, seed=0)
        again = run(f"{output}/b", architecture, way, seed=7, resume=f"{output}/a/checkpoint-{STOPPED}")
    return {
        "differing": [name for name, tensor in alone["state"].items() if not torch.equal(tensor, again["state"][name])],
        "history": alone["history"] == again["history"],
        "modes": sorted(alone["modes"].wrong | again["modes"].wrong),
        "calls": alone["modes"].calls,
        "log": alone["history"],
    }
