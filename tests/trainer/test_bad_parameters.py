"""What a Trainer cannot be given: one line each that names the argument, the reason and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer import tiny
from trainer.runs import make
from trainwright import Trainer, TrainerCallback
from trainwright.contract import UserError

ROWS = tiny.vectors(8)


class OldLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        return model(**inputs)[0]


class Stops(TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> Any:
        return True


def metrics(returned: Any) -> dict[str, Any]:
    return {"eval_strategy": "steps", "max_steps": 1, "trainer": {"compute_metrics": lambda prediction: returned}}


RETURNED = "; return a dict of names and numbers, as {'accuracy': 0.5}"
PAIR = "optimizers: it must be a pair, (optimizer, scheduler), either may be None, not "
GIVEN: dict[str, tuple[dict[str, Any], str]] = {
    "tokenizer=": ({"trainer": {"tokenizer": 1}}, "tokenizer: is not an argument of the Trainer; use processing_class"),
    "lr=": (
        {"trainer": {"learning_rate": 1}},
        "learning_rate: is not an argument of the Trainer, but one of TrainingArguments; give it there",
    ),
    "a name that is near": (
        {"trainer": {"train_datasets": 1}},
        "train_datasets: is not an argument of the Trainer; did you mean train_dataset?",
    ),
    "a name for a model": (
        {"model": "bert"},
        "model: it must be a torch.nn.Module, not the str 'bert'; load it first, as by AutoModel.from_pretrained",
    ),
    "a mapping for a function": (
        {"trainer": {"compute_metrics": {}}},
        "compute_metrics: it must be a function, EvalPrediction -> dict, not a dict",
    ),
    "an optimizer alone": ({"trainer": {"optimizers": torch.optim.SGD}}, PAIR + "the class SGD"),
    "a callback alone": (
        {"trainer": {"callbacks": Stops()}},
        "callbacks: it must be a list of callbacks, not a Stops; write [...] around it",
    ),
    "no callback": (
        {"trainer": {"callbacks": ["stop"]}},
        "callbacks: the str 'stop' is no callback; derive its class from TrainerCallback",
    ),
    "a callback's answer": (
        {"trainer": {"callbacks": [Stops()]}},
        "callbacks: Stops.on_step_end returned bool; return the control that it receives, or nothing",
    ),
    "sets by name": (
        {"data": {"train": ROWS, "test": ROWS}},
        "train_dataset: it is a dict of train, test; give one of them, as data['train']",
    ),
    "an old compute_loss": (
        {"kind": OldLoss},
        "compute_loss: that of OldLoss does not take num_items_in_batch; declare it as compute_loss(self, model, ",
    ),
    "an old compute_loss_func": (
        {"trainer": {"compute_loss_func": lambda outputs, labels: outputs[0]}},
        "compute_loss_func: it does not take num_items_in_batch; declare it as (outputs, labels, num_items_in_batch=No",
    ),
    "metrics of no batch": (
        metrics({"a": 1}) | {"batch_eval_metrics": True},
        "compute_metrics: batch_eval_metrics calls it for each batch, with compute_result True at the last one; decl",
    ),
    "metrics in an array": (metrics(np.ones(2)), "compute_metrics: it returned a ndarray" + RETURNED),
    "a number for metrics": (metrics(0.5), "compute_metrics: it returned the float 0.5" + RETURNED),
    "no metrics": (metrics(None), "compute_metrics: it returned nothing (None)" + RETURNED),
    "no logits": (
        {
            **metrics({"a": 1}),
            "trainer": {"compute_metrics": dict, "preprocess_logits_for_metrics": lambda logits, labels: None},
        },
        "preprocess_logits_for_metrics: it returned None; return what compute_metrics shall see",
    ),
    "the best by what is not measured": (
        {"eval_strategy": "steps", "metric_for_best_model": "f1"},
        "metric_for_best_model: no evaluation gives f1; choose one of loss",
    ),
    "the best by another name": (
        {**metrics({"f1_macro": 1.0}), "metric_for_best_model": "f1"},
        "metric_for_best_model: no evaluation gives f1; choose one of f1_macro, loss",
    ),
}
WHEN_CALLED = (
    *("a callback's answer", "metrics in an array", "a number for metrics", "no metrics", "no logits"),
    "the best by another name",
)


@pytest.mark.parametrize("case", GIVEN)
def test_what_the_trainer_cannot_use_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    """Before the first step, unless only a step or an evaluation can tell."""
    given, words = GIVEN[case]
    model, steps = tiny.classifier(), []
    model.register_forward_pre_hook(lambda *call: steps.append(1))
    with pytest.raises(UserError) as caught:
        make(tmp_path, **{"max_steps": 2, "model": model, **given}).train()
    said = str(caught.value)
    assert said.startswith(words)
    assert "\n" not in said
    assert not steps or case in WHEN_CALLED
