"""FSDP 2 over gloo: two ranks with shards train as one process does with twice the batch.

Starting ranks takes far longer than these runs do, so all of them are made in one world.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sharding import table
from trainer import tiny
from trainer.runs import logged, quiet, trained
from trainer.world import in_world

GPT2 = {"model": "gpt2", "data": "texts"}
CASES: dict[str, dict[str, Any]] = {
    "plain, no blocks": {},
    "gpt2": GPT2,
    "gpt2, accumulated": {**GPT2, "gradient_accumulation_steps": 2},
    "gpt2, clipped": {**GPT2, "max_grad_norm": 0.01},
    "gpt2, adamw": {**GPT2, "optim": "adamw_torch_fused", "learning_rate": 1e-3},
    "bert, evaluated": {"model": "bert", "data": "sentences", "eval_strategy": "steps", "eval_steps": 3},
    "masked bert": {"model": "masked_bert", "data": "texts"},
    "t5, accumulated": {"model": "t5", "data": "texts", "gradient_accumulation_steps": 2},
    "t5, targets on one rank": {"model": "t5", "data": "lopsided", "max_steps": 1},
}
UNITS = {"gpt2": ["FSDPGPT2Block", "FSDPGPT2Block", "FSDPGPT2LMHeadModel"], "plain, no blocks": ["FSDPClassifier"]}


def run(options: dict[str, Any]) -> dict[str, Any]:
    """What this process sees of a run; ``model`` and ``data`` name functions of :mod:`trainer.tiny`."""
    options = {"max_steps": 6, "train_sampling_strategy": "sequential", "optim": "sgd", **options}
    model = quiet(getattr(tiny, options.pop("model", "classifier"))(seed=options.pop("weights", 0)))
    data = getattr(tiny, options.pop("data", "vectors"))(64)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(folder, model, data, trainer={"eval_dataset": data[:11]}, **options)
    seen = {key: logged(trainer, key) for key in ("loss", "grad_norm", "eval_loss")}
    return {**seen, "weights": whole(trainer.model), "units": units(trainer.model)}


def whole(model: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters; with shards all ranks must call this."""
    return [p.full_tensor().detach() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def units(model: nn.Module) -> list[str]:
    return sorted(type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule))


LONG = ("Llama", "T5")
"""Kinds of ``make sharding``, which trains more of them in more ways."""


def everything(_: None) -> dict[str, Any]:
    """All that two ranks are asked for."""
    rank = torch.distributed.get_rank()
    own = {"per_device_train_batch_size": 4, "weights": rank, "fsdp": True}  # ranks that begin apart come together
    long = {f"{name}, 20 steps": table.run(name, "sgd", {"fsdp": True}) for name in LONG}
    return {**{name: run({**options, **own}) for name, options in CASES.items()}, **long}


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return in_world(2, "trainer.test_fsdp:everything")


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process_does_with_twice_the_batch(two, name):
    expected = run({**CASES[name], "per_device_train_batch_size": 8})
    for seen in (ranks[name] for ranks in two):
        assert seen["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert seen["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        assert seen["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
        for mine, theirs in zip(seen["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LONG)
def test_twenty_steps_are_those_of_one_process(two, name):
    alone = table.run(name, "sgd", {})
    for seen in two:
        assert max(table.apart(seen[f"{name}, 20 steps"], alone).values()) < table.LIMITS["sgd"]


@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_the_blocks_of_the_model_and_the_model(two, name):
    assert [seen[name]["units"] for seen in two] == [UNITS[name]] * 2
