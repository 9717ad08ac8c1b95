"""The same script, with either import, ends with the same losses: our Trainer against that of transformers 5.24."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import trainwright
from trainer import tiny

TOLERANCE = 1e-5
UNEQUAL = ("runtime", "per_second", "preparation_time")


def accuracy(prediction: Any) -> dict[str, float]:
    logits, labels = prediction
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float((np.argmax(logits, -1) == labels).mean()), "rows": len(labels)}


def mean_error(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


@dataclasses.dataclass(frozen=True)
class Script:
    model: Callable[[], nn.Module] = tiny.classifier
    train: Callable[[], Any] = tiny.vectors
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, library: Any, folder: Any) -> tuple[Any, Any]:
        common = {
            "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
            "save_strategy": "no", "per_device_train_batch_size": 8, "learning_rate": 5e-3, "num_train_epochs": 2,
        }  # fmt: skip
        model = self.model()
        args = library.TrainingArguments(**(common | self.arguments))
        samples = self.train()
        trainer = library.Trainer(model, args, train_dataset=samples, eval_dataset=samples[:11], **self.trainer)
        trainer.remove_callback(library.PrinterCallback)
        return trainer, trainer.train()


def language(**arguments: Any) -> Script:
    return Script(tiny.gpt2, tiny.texts, arguments)


def plain(**arguments: Any) -> Script:
    return Script(arguments=arguments)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}

SCRIPTS = {
    "plain": plain(),
    "plain, accumulated": plain(gradient_accumulation_steps=4),
    "plain, cosine and warm-up": plain(lr_scheduler_type="cosine", warmup_steps=3),
    "plain, warm-up as a share": plain(lr_scheduler_type="cosine", warmup_steps=0.25),
    "plain, weight decay": plain(weight_decay=0.3),
    "plain, hard clipping": plain(max_grad_norm=0.05),
    "plain, no clipping": plain(max_grad_norm=0.0),
    "plain, sgd": plain(optim="sgd", optim_args="momentum=0.9", learning_rate=0.1),
    "plain, rmsprop": plain(optim="rmsprop"),
    "plain, adagrad": plain(optim="adagrad"),
    "plain, adafactor": plain(optim="adafactor"),
    "plain, unfused adamw": plain(optim="adamw_torch", adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6),
    "plain, another seed": plain(seed=7, data_seed=3),
    "plain, bf16": plain(bf16=True),
    "plain, drop last": plain(dataloader_drop_last=True),
    "plain, sequential": plain(train_sampling_strategy="sequential"),
    "plain, max steps across epochs": plain(max_steps=13, gradient_accumulation_steps=2),
    "plain, first step logged": plain(logging_steps=4, logging_first_step=True),
    "plain, logged by epoch": plain(logging_strategy="epoch"),
    "plain, steps as shares": plain(logging_steps=0.25, eval_strategy="steps", eval_steps=0.5),
    "plain, evaluated": Script(arguments=EVALUATED, trainer={"compute_metrics": accuracy}),
    "plain, evaluated late": plain(eval_strategy="epoch", eval_delay=1.5),
    "plain, evaluated on start": plain(eval_strategy="epoch", eval_on_start=True),
    "plain, plateau": plain(
        lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0, "threshold": 0.5}, **EVALUATED
    ),
    "plain, loss function": Script(trainer={"compute_loss_func": mean_error}, arguments=EVALUATED),
    "plain, loss function accumulated": Script(
        trainer={"compute_loss_func": mean_error}, arguments={"gradient_accumulation_steps": 3}
    ),
    "bert": Script(tiny.bert, tiny.sentences, EVALUATED, {"compute_metrics": accuracy}),
    "bert, smoothed labels": Script(tiny.bert, tiny.sentences, {"label_smoothing_factor": 0.1, **EVALUATED}),
    "gpt2": language(),
    "gpt2, accumulated": language(gradient_accumulation_steps=4),
    "gpt2, evaluated": language(**EVALUATED),
    "gpt2, smoothed labels": language(label_smoothing_factor=0.2, gradient_accumulation_steps=2, **EVALUATED),
    "gpt2, activations recomputed": language(activation_checkpointing=True),
    "gpt2, noise on the embeddings": language(neftune_noise_alpha=5.0),
    "gpt2, tokens counted": language(include_num_input_tokens_seen="all"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_log_is_that_of_transformers(name, tmp_path):
    reference, expected = SCRIPTS[name].run(transformers, tmp_path / "theirs")
    trainer, result = SCRIPTS[name].run(trainwright, tmp_path / "ours")
    assert result.global_step == expected.global_step
    assert result.training_loss == pytest.approx(expected.training_loss, abs=TOLERANCE)
    assert len(trainer.state.log_history) == len(reference.state.log_history)
    for entry, theirs in zip(trainer.state.log_history, reference.state.log_history, strict=True):
        assert entry.keys() == theirs.keys()
        for key in entry:
            if not any(word in key for word in UNEQUAL):
                assert entry[key] == pytest.approx(theirs[key], abs=TOLERANCE), (key, entry, theirs)
    for mine, theirs in zip(trainer.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def test_state_is_that_of_transformers(tmp_path):
    script = language(eval_strategy="steps", eval_steps=2, metric_for_best_model="loss")
    reference, _ = script.run(transformers, tmp_path / "theirs")
    trainer, _ = script.run(trainwright, tmp_path / "ours")
    expected, state = dataclasses.asdict(reference.state), dataclasses.asdict(trainer.state)
    assert state.keys() == expected.keys()
    for key in state.keys() - {"log_history", "best_metric"}:
        assert state[key] == expected[key], key
    assert state["best_metric"] == pytest.approx(expected["best_metric"], abs=TOLERANCE)


def test_predictions_are_those_of_transformers(tmp_path):
    script = Script(tiny.bert, tiny.sentences, trainer={"compute_metrics": accuracy})
    reference, _ = script.run(transformers, tmp_path / "theirs")
    trainer, _ = script.run(trainwright, tmp_path / "ours")
    expected, output = reference.predict(tiny.sentences(13, seed=5)), trainer.predict(tiny.sentences(13, seed=5))
    np.testing.assert_allclose(output.predictions, expected.predictions, atol=TOLERANCE)
    np.testing.assert_array_equal(output.label_ids, expected.label_ids)
    assert output.metrics.keys() == expected.metrics.keys()
    assert output.metrics["test_accuracy"] == expected.metrics["test_accuracy"]


def test_arguments_are_looked_at_again(tmp_path):
    """Those that were changed, those of transformers, and what is none at all."""
    args = trainwright.TrainingArguments(str(tmp_path), use_cpu=True)
    args.learning_rate = "fast"
    with pytest.raises(ValueError, match="learning_rate: must be a number, not the text 'fast'"):
        trainwright.Trainer(tiny.classifier(), args)
    theirs = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    theirs.report_to = ["tensorbord"]
    with pytest.raises(ValueError, match="report_to: 'tensorbord' is not a choice; did you mean tensorboard"):
        trainwright.Trainer(tiny.classifier(), theirs)
    with pytest.raises(ValueError, match="args: give TrainingArguments, not Classifier; the model comes before them"):
        trainwright.Trainer(theirs, tiny.classifier())


def test_arguments_of_transformers_are_taken(tmp_path):
    args = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=3, save_strategy="no", disable_tqdm=True
    )
    result = trainwright.Trainer(tiny.classifier(), args, train_dataset=tiny.vectors()).train()
    reference = transformers.Trainer(tiny.classifier(), args, train_dataset=tiny.vectors()).train()
    assert result.training_loss == pytest.approx(reference.training_loss, abs=TOLERANCE)
