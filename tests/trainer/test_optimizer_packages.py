"""Optimizers of packages: the classes and settings of transformers, and runs that resume to the bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS, OptimizerContext, _parse_optim_args

from trainer import tiny
from trainer.runs import weights
from trainwright import Trainer
from trainwright.arguments import TrainingArguments
from trainwright.arguments.machine import OPTIMIZERS
from trainwright.training.optimizers import factory
from trainwright.training.optimizers.lowrank import Layerwise, target_weights

HERE = ("bitsandbytes", "galore_torch", "apollo_torch", "grokadamw", "schedulefree", "optimi")
"""What ``make setup`` installs."""
NEEDS_GPU = {"galore_adamw_8bit", "galore_adamw_8bit_layerwise"}
RUNNABLE = sorted(name for name, package in OPTIMIZERS.items() if package.module in HERE and name not in NEEDS_GPU)
LOW_RANK = "optim_target_modules"


def wanted(name: str) -> dict[str, Any]:
    low_rank = name.startswith(("galore", "apollo"))
    return {LOW_RANK: "all-linear", "optim_args": "rank=4,update_proj_gap=2"} if low_rank else {}


def trained(folder: Path, name: str, resume: str | None = None, **arguments: Any) -> Trainer:
    args = TrainingArguments(
        str(folder), optim=name, use_cpu=True, disable_tqdm=True, learning_rate=0.01, logging_steps=1,
        **{"max_steps": 6, "save_steps": 3, "lr_scheduler_type": "constant", **wanted(name), **arguments},
    )  # fmt: skip
    model = tiny.classifier(dropout=0.0)  # an evaluation draws from the generator that dropout draws from
    trainer = Trainer(model, args, train_dataset=tiny.vectors(48), eval_dataset=tiny.vectors(8))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.filterwarnings("ignore")
def test_it_learns_and_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", name)
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert any(not torch.equal(a, b) for a, b in zip(weights(whole), tiny.classifier().parameters(), strict=True))
    again = trained(tmp_path / "again", name, resume=str(tmp_path / "whole" / "checkpoint-3"))
    for a, b in zip(weights(whole), weights(again), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


SETTINGS = {
    "ademamix": "beta3=0.99,alpha=3,t_alpha=10",
    "rmsprop_bnb": "alpha=0.9,momentum=0.2",
    "grokadamw": "lamb=1.5,gamma=0.2",
    "schedule_free_adamw": "r=0.5,weight_lr_power=1",
    "stable_adamw": "max_lr=0.1",
    "galore_adamw": "rank=4,scale=0.5,proj_type=reverse_std",
    "apollo_adamw": "rank=2,proj=svd,scale_type=tensor",
}


def theirs(name: str, args: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
    settings = _parse_optim_args(args.optim_args)
    if "rmsprop" in name:  # theirs passes texts on
        settings = {key: float(value) for key, value in settings.items()}
    context = OptimizerContext(
        args=args,
        model=model,
        optimizer_kwargs={"lr": args.learning_rate},
        adam_kwargs={"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon},
        optim_args=settings,
    )
    cls, kwargs = _OPTIMIZER_HANDLERS[name](context)
    return cls(kwargs.pop("params", None) or list(model.parameters()), **kwargs)


@pytest.mark.parametrize("name", [name for name in RUNNABLE if "layerwise" not in name])
@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_it_is_set_up_as_that_of_transformers(name: str, stated: bool, tmp_path: Path) -> None:
    text = SETTINGS.get(name) if stated else None
    args = TrainingArguments(
        str(tmp_path), optim=name, use_cpu=True, optim_args=text, learning_rate=0.01,
        optim_target_modules=["hidden"] if name.startswith(("galore", "apollo")) else None,
    )  # fmt: skip
    model = tiny.classifier()
    expected = theirs(name, args, model)
    ours = Trainer(model, args).create_optimizer()
    assert type(ours).__name__ == type(expected).__name__
    apart = {"triton"}  # a kernel for GPUs
    for key in expected.defaults.keys() - apart:
        if not (name == "apollo_adamw" and key == "eps"):  # theirs gives Adam's settings to the projected layers alone
            assert ours.defaults[key] == expected.defaults[key], key
    projection = ("rank", "update_proj_gap", "scale", "proj_type", "proj", "scale_type")
    told = [{key: group[key] for key in projection if key in group} for group in expected.param_groups]
    assert [each for each in told if each] == [
        each for each in ({k: g[k] for k in projection if k in g} for g in ours.param_groups) if each
    ]


def test_what_the_arguments_say_reaches_the_optimizers_that_transformers_gives_none(tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path), optim="galore_adamw", optim_target_modules=["head"], adam_beta1=0.8, adam_epsilon=1e-4,
        weight_decay=0.1, use_cpu=True,
    )  # fmt: skip
    optimizer = Trainer(tiny.classifier(), args).create_optimizer()
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.999), 1e-4)
    assert [(group["weight_decay"], group.get("rank"), len(group["params"])) for group in optimizer.param_groups] == [
        (0.1, None, 1),
        (0.1, 128, 1),
        (0.0, None, 4),
    ]


@pytest.mark.parametrize(
    ("targets", "weights"),
    [
        ("all-linear", {"hidden.weight", "head.weight"}),
        ("all_linear", {"hidden.weight", "head.weight"}),
        ("h.*d", {"head.weight"}),
        (["hid"], {"hidden.weight"}),
        ([".*ead", "hidden"], {"hidden.weight", "head.weight"}),
        (["norm", "head"], {"head.weight"}),
    ],
)
def test_optim_target_modules_select_linear_layers_by_name(targets: Any, weights: set[str]) -> None:
    assert set(target_weights(tiny.classifier(), targets)) == weights


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("query", "optim_target_modules: 'query' names no linear layer of Classifier; it has head, hidden"),
        (["norm"], "names no linear layer"),
        ("(", "is no regular expression"),
    ],
)
def test_targets_that_match_no_linear_layer_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(factory.OptimizerError) as error:
        target_weights(tiny.classifier(), targets)
    assert message in str(error.value)


def test_layer_by_layer_gives_what_all_at_once_does(tmp_path: Path) -> None:
    given = {"max_grad_norm": 0, "lr_scheduler_type": "linear", "save_strategy": "no"}
    whole = trained(tmp_path / "a", "galore_adamw", **given)
    layerwise = trained(tmp_path / "b", "galore_adamw_layerwise", **given)
    assert isinstance(layerwise.optimizer, Layerwise)
    assert layerwise.get_learning_rates()[0] == whole.get_learning_rates()[0]
    for a, b in zip(weights(whole), weights(layerwise), strict=True):
        torch.testing.assert_close(a, b)


class TestScheduleFree:
    """The weights that are evaluated and saved are the averaged ones, and the training does not notice."""

    def test_an_evaluation_changes_no_bit(self, tmp_path: Path) -> None:
        name = "schedule_free_adamw"
        quiet = trained(tmp_path / "a", name)
        looked_at = trained(tmp_path / "b", name, eval_strategy="steps", eval_steps=1, save_steps=1)
        for a, b in zip(weights(quiet), weights(looked_at), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_the_averaged_weights_are_saved_and_evaluated(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        trainer = trained(tmp_path, "schedule_free_adamw", eval_strategy="steps", eval_steps=6)
        saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
        for name, tensor in trainer.model.state_dict().items():
            torch.testing.assert_close(saved[name], tensor, rtol=0, atol=0)
        told = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
        assert trainer.evaluate()["eval_loss"] == told
        trainer.optimizer.train()
        assert any(not torch.equal(saved[n], t) for n, t in trainer.model.state_dict().items())

    def test_a_share_of_warmup_needs_the_number_of_steps(self) -> None:
        args = SimpleNamespace(warmup_steps=0.1, max_steps=-1)
        with pytest.raises(factory.OptimizerError, match="warmup_steps"):
            factory._warmup(args)
        args = TrainingArguments(warmup_steps=0.5, max_steps=9, use_cpu=True, optim="schedule_free_sgd")
        assert factory.get_optimizer_cls_and_kwargs(args)[1]["warmup_steps"] == 5


def test_embeddings_keep_their_state_in_float32(tmp_path: Path) -> None:
    from bitsandbytes.optim import GlobalOptimManager

    args = TrainingArguments(str(tmp_path), optim="adamw_bnb_8bit", use_cpu=True)
    model = tiny.gpt2()
    Trainer(model, args).create_optimizer()
    overridden = [module for module, name, _ in GlobalOptimManager.get_instance().module_weight_config_triple]
    assert any(module is model.transformer.wte for module in overridden)


@pytest.mark.parametrize("name", ["adamw_torch_4bit", "adamw_torch_8bit"])
def test_optimizers_of_torchao_learn_and_resume_to_the_bit(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: every import of transformers would load it")
    with torch.compiler.set_stance("force_eager"):
        test_it_learns_and_resumes_to_the_bit(name, tmp_path)


def test_lomo_learns_and_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("lomo_optim", reason="lomo-optim is not installed: accelerate looks it up in every step")
    test_it_learns_and_resumes_to_the_bit("lomo", tmp_path)
