"""Groups of parameters, and Adafactor's arithmetic, are those of transformers; mistakes are named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers import Trainer as TheirTrainer
from transformers.optimization import Adafactor as TheirAdafactor

from trainer.runs import make
from trainwright.training.optimizers import factory as optim


def arguments(name, **kwargs):
    defaults = {
        "optim": name, "optim_args": None, "learning_rate": 0.01, "adam_beta1": 0.8, "adam_beta2": 0.95,
        "adam_epsilon": 1e-6, "weight_decay": 0.1,
    }  # fmt: skip
    return SimpleNamespace(**(defaults | kwargs))


class Odd(nn.Module):
    """Names that only pattern matching sorts: a norm that is no LayerNorm, a bias in a name, a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])
        self.input_norm = nn.Linear(2, 2)
        self.norm = nn.Linear(2, 2)
        self.normal = nn.Linear(2, 2)
        self.RMSNorm = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.bias_table = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    "make", [Odd, lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11))]
)
def test_decayed_parameters_are_those_of_transformers(make):
    model = make()
    expected = TheirTrainer.get_decay_parameter_names(None, model)
    assert sorted(optim.get_decay_parameter_names(model)) == sorted(expected)


def test_groups_leave_frozen_parameters_out():
    model = Odd()
    model.normal.weight.requires_grad = False
    decayed, others = optim.parameter_groups(model, optim.get_decay_parameter_names(model), 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2,), (2, 2)]  # scale, layers.0.weight
    assert not any(p is model.normal.weight for p in others["params"])


ADAFACTOR = [
    {"lr": 0.01, "scale_parameter": False, "relative_step": False},
    {"lr": 0.01, "scale_parameter": True, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1},
    {"lr": None, "warmup_init": True},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kwargs", ADAFACTOR, ids=str)
def test_adafactor_steps_like_that_of_transformers(kwargs, dtype):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(4, 3).to(dtype)), nn.Parameter(torch.randn(5).to(dtype))]
    reference = [nn.Parameter(p.detach().clone()) for p in mine]
    optimizers = optim.Adafactor(mine, **kwargs), TheirAdafactor(reference, **kwargs)
    for _ in range(4):
        for a, b in zip(mine, reference, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "optim_args", "error", "message"),
    [
        ("sgd", "momentum", optim.OptimizerError, "not of the form key=value"),
        ("sgd", "momentum=fast", optim.OptimizerError, "optim_args: momentum=fast is no number"),
        ("sgd", "speed=3", optim.OptimizerError, "sgd takes momentum, dampening, weight_decay, nesterov, not speed"),
        ("adamw_torch", "fast=1", optim.OptimizerError, "optim_args: adamw_torch takes none, not fast"),
        (
            "sgd",
            "nesterov=perhaps",
            optim.OptimizerError,
            "optim_args: nesterov=perhaps: perhaps is neither true nor",
        ),
        ("galore_adamw", "rank=a", optim.OptimizerError, "optim_args: rank=a is no whole number"),
        (
            "adamw_anyprecision",
            None,
            optim.OptimizerError,
            "needs the package torchdistx, which is not installed; run",
        ),
        ("galore_adamw", None, optim.OptimizerError, "optim: galore_adamw must know the model"),
    ],
)
def test_mistakes_are_named(name, optim_args, error, message):
    with pytest.raises(error, match=message):
        optim.get_optimizer_cls_and_kwargs(arguments(name, optim_args=optim_args))


@pytest.mark.parametrize(("name", "told"), [("sgd", True), ("apollo_adamw", False)])
def test_targets_of_an_optimizer_that_has_none_are_told(name, told, tmp_path, caplog):
    make(tmp_path, optim=name, optim_target_modules=["hidden"]).create_optimizer()
    assert ("optim_target_modules: sgd trains all layers alike" in caplog.text) is told
