"""The optimizers' table, against that of transformers: every name of ``optim``, its class and its keyword arguments.

A package that is not installed is stood in for by classes that record what they are given: its real defaults do not
matter here, as what transformers states is stated, and never left to the package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import trainer_optimizer as theirs
from transformers.training_args import OptimizerNames

from trainer import tiny
from trainwright.arguments import TrainingArguments
from trainwright.training.optimizers import factory

CLASSES = {
    "bitsandbytes.optim": ("AdamW", "Lion", "RMSprop", "AdEMAMix"),
    "galore_torch": ("GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor"),
    "apollo_torch": ("APOLLOAdamW",),
    "lomo_optim": ("Lomo", "AdaLomo"),
    "torchao.optim": ("AdamW4bit", "AdamW8bit"),
    "schedulefree": ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"),
    "grokadamw": ("GrokAdamW",),
    "optimi": ("StableAdamW",),
    "torchdistx.optimizers": ("AnyPrecisionAdamW",),
    "torch_xla.amp.syncfree": ("AdamW",),
    "torch_npu.optim": ("NpuFusedAdamW",),
}
"""Modules of packages -> the optimizers that are made from them."""


class Recording(torch.optim.Optimizer):
    """Holds its groups, as every optimizer does, and what it was told."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        self.told = kwargs
        super().__init__(params, kwargs)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package is there, for us and for transformers."""
    for path, names in CLASSES.items():
        for depth in range(1, path.count(".") + 2):
            name = ".".join(path.split(".")[:depth])
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for name in names:
            setattr(sys.modules[path], name, type(name, (Recording,), {}))
    for name in [name for name in vars(theirs) if name.startswith("is_") and name.endswith("_available")]:
        monkeypatch.setattr(theirs, name, lambda *least: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    monkeypatch.setattr(factory, "package_problem", lambda name: None)


def arguments(name: str, optim_args: str | None) -> Any:
    args = TrainingArguments(
        use_cpu=True, optim_args=optim_args, learning_rate=0.01, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6,
        weight_decay=0.1, warmup_steps=3, max_steps=9,
    )  # fmt: skip
    args.optim, args.optim_target_modules = OptimizerNames(name), "all-linear"
    return args


def told(cls: Any, kwargs: dict[str, Any]) -> tuple[str, dict[Any, dict[str, Any]]]:
    """The class that is made in the end, and what it is told of each parameter (of all where it sorts none)."""
    kwargs = dict(kwargs)
    if isinstance(cls, partial):
        cls = cls.args[0]
    if (members := kwargs.pop("optimizer_dict", None)) is not None:  # one optimizer a parameter, as transformers has it
        made = {p: {**each.told, **each.param_groups[0]} for p, each in members.items()}
        return type(next(iter(members.values()))).__name__, {p: _settings(each) for p, each in made.items()}
    if (make := kwargs.pop("make", None)) is not None:  # and as we do
        cls, kwargs = make.func, {**kwargs, **make.keywords}
    kwargs.pop("model", None)
    groups = kwargs.pop("params", [{"params": ["all"]}])
    return cls.__name__, {p: {**kwargs, **_settings(group)} for group in groups for p in group["params"]}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


MORE = {
    "grokadamw": {"betas", "eps"},
    "lomo": {"weight_decay"},
    "adalomo": {"weight_decay"},
    "stable_adamw": {"triton"},  # whether a kernel for GPUs may be used
    "galore_adamw": {"betas", "eps", "weight_decay", "no_deprecation_warning"},
    "galore_adafactor": {"weight_decay", "scale_parameter", "relative_step"},  # theirs forgets them layer by layer
    "apollo_adamw": {"betas", "eps", "weight_decay"},  # theirs tells the projected parameters alone
}
"""What the arguments say, and transformers does not pass on to these."""

STATED = {
    "ademamix": "beta1=0.7,beta2=0.8,beta3=0.99,alpha=3,eps=1e-4,t_alpha=10,t_beta3=20",
    "rmsprop_bnb": "alpha=0.9,momentum=0.2,eps=1e-4",
    "sgd": "momentum=0.9, nesterov=true, dampening=0.5, weight_decay=0.2",
    "adagrad": "lr_decay=0.1,eps=1e-5,weight_decay=0.2",
    "rmsprop": "alpha=0.9,centered=yes,momentum=0.2,eps=1e-5,weight_decay=0.2",
    "grokadamw": "alpha_init=0.9,lamb=1.5,gamma=0.2,grokking_signal_decay_rate=0.3,gradient_clipping=0.4",
    "schedule_free_adamw": "r=0.5,weight_lr_power=1",
    "schedule_free_radam": "r=0.5,weight_lr_power=1",
    "schedule_free_sgd": "r=0.5,weight_lr_power=1",
    "stable_adamw": "max_lr=0.1,kahan_sum=true,decouple_lr=true",
    "galore_adamw": "rank=4,update_proj_gap=3,scale=0.5,proj_type=reverse_std",
    "galore_adafactor_layerwise": "rank=4",
    "apollo_adamw": "rank=2,proj=svd,scale_type=tensor,update_proj_gap=3,scale=0.5,proj_type=left",
    "adamw_torch_4bit": "block_size=64,bf16_stochastic_round=true",
    "adamw_anyprecision": (
        "use_kahan_summation=true,momentum_dtype=bfloat16,variance_dtype=float16,compensation_buffer_dtype=float32"
    ),
}
"""Every setting of ``optim_args``."""

CASES = [(name.value, text) for name in OptimizerNames for text in dict.fromkeys((None, STATED.get(name.value)))]


@pytest.mark.parametrize(("name", "optim_args"), CASES)
def test_each_optimizer_gets_the_settings_that_transformers_gives_it(name: str, optim_args: str | None) -> None:
    args, model = arguments(name, optim_args), tiny.classifier()
    context = theirs.OptimizerContext(
        args=args,
        model=model,
        optimizer_kwargs={"lr": args.learning_rate},
        adam_kwargs={"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon},
        optim_args=theirs._parse_optim_args(args.optim_args),
    )
    their_class, expected = told(*theirs._OPTIMIZER_HANDLERS[name](context))
    our_class, ours = told(*factory.get_optimizer_cls_and_kwargs(args, model))
    assert our_class == their_class
    assert ours.keys() == expected.keys()
    for parameter, settings in expected.items():
        assert {key: ours[parameter].get(key, "nothing") for key in settings} == {
            key: _read(value, ours[parameter].get(key)) for key, value in settings.items()
        }
        more = ours[parameter].keys() - settings.keys()
        assert more <= MORE.get(name.removesuffix("_layerwise").removesuffix("_8bit"), set())


def _read(value: Any, like: Any) -> Any:
    """Theirs passes some texts on as they are."""
    return float(value) if isinstance(value, str) and isinstance(like, int | float) else value
