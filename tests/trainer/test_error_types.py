"""A mistake raises what transformers raises for it, too: scripts and tests catch it by that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

import trainwright
from trainer import tiny


def arguments(library: Any, folder: Path, **values: Any) -> Any:
    given = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1}
    return library.TrainingArguments(**(given | values))


def trainer(library: Any, folder: Path, values: dict[str, Any] | None = None, **parts: Any) -> Any:
    given = {"model": tiny.classifier(), "train_dataset": tiny.vectors(8), **parts}
    return library.Trainer(args=arguments(library, folder, **(values or {})), **given)


def trained(library: Any, folder: Path, values: dict[str, Any] | None = None, **parts: Any) -> None:
    trainer(library, folder, values, **parts).train()


def resumed(library: Any, folder: Path, checkpoint: Any) -> None:
    trainer(library, folder).train(resume_from_checkpoint=checkpoint)


SGD, STEPS = torch.optim.SGD(tiny.classifier().parameters(), lr=0.1), {"eval_strategy": "steps", "eval_steps": 1}
SCHEDULE = {"num_warmup_steps": 0, "num_training_steps": 4}

MISTAKES: dict[str, Callable[[Any, Path], Any]] = {
    "no model": lambda lib, to: trainer(lib, to, model=None),
    "a model and model_init": lambda lib, to: trainer(lib, to, model_init=tiny.classifier),
    "two optimizers": lambda lib, to: trainer(
        lib, to, optimizers=(SGD, None), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1})
    ),
    "an optimizer and model_init": lambda lib, to: trainer(
        lib, to, model=None, model_init=tiny.classifier, optimizers=(SGD, None)
    ),
    "a collator that is no function": lambda lib, to: trainer(
        lib, to, data_collator=SimpleNamespace(collate_batch=len)
    ),
    "model_init with two arguments": lambda lib, to: trained(lib, to, model=None, model_init=lambda a, b: None),
    "model_init of nothing": lambda lib, to: trained(lib, to, model=None, model_init=lambda: None),
    "nothing to train on": lambda lib, to: trained(lib, to, train_dataset=None),
    "nothing to evaluate on": lambda lib, to: trainer(lib, to).evaluate(),
    "evaluations without a set": lambda lib, to: trainer(lib, to, STEPS),
    "a stream without max_steps": lambda lib, to: trainer(lib, to, {"max_steps": -1}, train_dataset=iter(())),
    "no checkpoint": lambda lib, to: resumed(lib, to, True),
    "a checkpoint that is not there": lambda lib, to: resumed(lib, to, str(to / "checkpoint-9")),
    "a metric that is not there": lambda lib, to: trained(
        lib, to, {**STEPS, "metric_for_best_model": "f1"}, eval_dataset=tiny.vectors(8)
    ),
    "a metric for the schedule that is not there": lambda lib, to: trained(
        lib, to, {**STEPS, "metric_for_best_model": "f1", "lr_scheduler_type": "reduce_lr_on_plateau"},
        eval_dataset=tiny.vectors(8),
    ),
    "early stopping without a metric": lambda lib, to: trained(lib, to, callbacks=[lib.EarlyStoppingCallback()]),
    "no optimizer yet": lambda lib, to: trainer(lib, to).get_learning_rates(),
    "labels that no loss comes of": lambda lib, to: trained(
        lib, to, model=transformers.BertModel(tiny.bert().config), train_dataset=tiny.sentences(8)
    ),
    "no column that the model takes": lambda lib, to: trained(
        lib, to, model=tiny.bert(), train_dataset=datasets.Dataset.from_dict({"text": ["a", "b"]})
    ),
    "a collator that gives nothing": lambda lib, to: trained(lib, to, data_collator=lambda samples: {}),
    "a model without a loss": lambda lib, to: trained(lib, to, model=Lossless()),
    "metrics of batches that take no result": lambda lib, to: trainer(
        lib, to, {"batch_eval_metrics": True}, compute_metrics=lambda prediction: {}
    ),
    "lengths of samples that have none": lambda lib, to: trained(
        lib, to, {"train_sampling_strategy": "group_by_length"}
    ),
    "accumulation said twice": lambda lib, to: trainer(
        lib, to,
        {"gradient_accumulation_steps": 2, "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
    ),
    "a class for a configuration": lambda lib, to: arguments(
        lib, to, accelerator_config=of(lib, "AcceleratorConfig")
    ),
    "a configuration that is not there": lambda lib, to: arguments(lib, to, accelerator_config=str(to / "config.json")),
    "a configuration of unknown settings": lambda lib, to: arguments(lib, to, accelerator_config={"split": True}),
    "generation settings that are not there": lambda lib, to: lib.Seq2SeqTrainer(
        tiny.gpt2(),
        lib.Seq2SeqTrainingArguments(str(to), use_cpu=True, report_to="none", generation_config=str(to / "none")),
    ),
    "an unknown argument": lambda lib, to: arguments(lib, to, learning_rat=1.0),
    "two number formats": lambda lib, to: arguments(lib, to, fp16=True, bf16=True),
    "the best model of no evaluation": lambda lib, to: arguments(lib, to, load_best_model_at_end=True),
    "a strategy that is none": lambda lib, to: arguments(lib, to, eval_strategy="always"),
    "half a step": lambda lib, to: arguments(lib, to, **STEPS | {"eval_steps": 1.5}),
    "no step between two logs": lambda lib, to: arguments(lib, to, logging_steps=0),
    "a setter's steps": lambda lib, to: arguments(lib, to).set_logging(strategy="steps", steps=0),
    "a low-rank optimizer without targets": lambda lib, to: trained(lib, to, {"optim": "apollo_adamw"}),
    "a schedule's settings": lambda lib, to: lib.get_scheduler("cosine", SGD, 0, 4, {"cycles": 2}),
    "a schedule without its length": lambda lib, to: lib.get_scheduler("linear", SGD, 0),
    "a schedule that is none": lambda lib, to: lib.get_scheduler("staircase", SGD, **SCHEDULE),
    "nests that are not alike": lambda lib, to: of(lib, "nested_concat")(np.ones(2), (np.ones(2),)),
    "lengths of nothing": lambda lib, to: of(lib, "LengthGroupedSampler")(2),
    "states of a callback that has none": lambda lib, to: of(lib, "TrainerState")(stateful_callbacks=[object()]),
    "a state that is not there": lambda lib, to: of(lib, "TrainerState").load_from_json(to / "trainer_state.json"),
}  # fmt: skip


class Lossless(torch.nn.Module):
    """Gives a mapping without a loss, labels or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(x)}


def of(library: Any, name: str) -> Any:
    modules = [library, *(getattr(library, f"trainer_{part}", None) for part in ("pt_utils", "callback"))]
    return next(getattr(module, name) for module in modules if hasattr(module, name))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_raises_what_transformers_raises(mistake: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as theirs:
        MISTAKES[mistake](transformers, tmp_path / "theirs")
    with pytest.raises(type(theirs.value)) as ours:
        MISTAKES[mistake](trainwright, tmp_path / "ours")
    assert len(str(ours.value).splitlines()) == 1


def test_a_package_that_is_not_there_is_an_import_error(tmp_path: Path) -> None:
    """transformers asks for it when training begins; here it is known when the arguments are made."""
    with pytest.raises(ImportError):
        trained(transformers, tmp_path, {"optim": "lomo"})
    lack = "optim: lomo needs the package lomo-optim"
    with pytest.raises(ImportError, match=lack):
        arguments(trainwright, tmp_path, optim="lomo")
    args = arguments(trainwright, tmp_path)
    args.optim = "lomo"
    with pytest.raises(ImportError, match=lack):
        trainwright.Trainer.get_optimizer_cls_and_kwargs(args)
