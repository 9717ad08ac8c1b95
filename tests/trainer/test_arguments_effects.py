"""Arguments whose whole effect is one setting of something else: the Trainer passes them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from trainer import tiny
from trainwright import PrinterCallback, ProgressCallback, Trainer, UserError
from trainwright.arguments import TrainingArguments
from trainwright.distributed.collectives import leaves
from trainwright.evaluation import passes as evaluation


def trainer_for(folder: Path, model: Any = None, **arguments: Any) -> Trainer:
    args = TrainingArguments(str(folder), use_cpu=True, **{"disable_tqdm": True, **arguments})
    samples = tiny.vectors(12)
    return Trainer(model or tiny.classifier(), args, train_dataset=samples, eval_dataset=samples)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adam_is_set_up_as_the_arguments_say(optim: str, tmp_path: Path) -> None:
    arguments = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-4, "learning_rate": 0.5}
    optimizer = trainer_for(tmp_path, optim=optim, **arguments).create_optimizer()
    settings = optimizer.param_groups[0]
    assert (settings["betas"], settings["eps"], settings["lr"]) == ((0.8, 0.95), 1e-4, 0.5)


def test_evaluation_has_a_batch_size_of_its_own(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, per_device_train_batch_size=2, per_device_eval_batch_size=5)
    assert [len(batch["labels"]) for batch in trainer.get_eval_dataloader()] == [5, 5, 2]
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [2] * 6


@pytest.mark.parametrize("pin", [True, False])
def test_batches_are_pinned_where_an_accelerator_takes_them(
    pin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(tmp_path)
    trainer.args.dataloader_pin_memory = pin
    trainer.args.check()
    assert trainer.args.dataloader_pin_memory is False  # use_cpu
    monkeypatch.setattr(trainer.args, "use_cpu", False)
    trainer.args.dataloader_pin_memory = pin
    trainer.args.check()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert trainer.get_train_dataloader().pin_memory is pin


def test_predictions_of_batches_are_joined_unless_they_are_wanted_apart(tmp_path: Path) -> None:
    joined = trainer_for(tmp_path).predict(tiny.vectors(12)).predictions
    apart = trainer_for(tmp_path, eval_do_concat_batches=False).predict(tiny.vectors(12)).predictions
    assert joined.shape == (12, 4)
    assert [batch.shape for batch in apart] == [(8, 4), (4, 4)]


def test_without_a_bar_the_log_is_printed(tmp_path: Path) -> None:
    for disabled, wanted in ((True, PrinterCallback), (False, ProgressCallback)):
        callbacks = trainer_for(tmp_path, disable_tqdm=disabled).callback_handler.callbacks
        shown = [type(each) for each in callbacks if isinstance(each, PrinterCallback | ProgressCallback)]
        assert shown == [wanted]


def test_objects_are_gathered_when_asked(tmp_path: Path) -> None:
    class Named(tiny.Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            loss, logits = super().forward(x, labels)
            return {"loss": loss, "logits": logits, "names": ["a name"] * len(x)}

    output = trainer_for(tmp_path, Named(), eval_use_gather_object=True).predict(tiny.vectors(12))
    logits, names = output.predictions[0]  # what cannot be joined stays a list of batches
    assert logits.shape == (8, 4)
    assert set(leaves(names)) == {"a name"}
    with pytest.raises(UserError, match="eval_use_gather_object"):
        trainer_for(tmp_path, Named()).predict(tiny.vectors(12))


def test_predictions_leave_the_device_as_often_as_the_arguments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Seen(evaluation.Collector):
        def __init__(self, concatenate: bool, every: int | None, expected: int = 0) -> None:
            asked.append(every)
            super().__init__(concatenate, every, expected)

    monkeypatch.setattr(evaluation, "Collector", Seen)
    trainer_for(tmp_path, eval_accumulation_steps=3).predict(tiny.vectors(12))
    assert set(asked) == {3}


def test_lengths_are_read_from_the_column_that_is_named(tmp_path: Path) -> None:
    sizes = [1, 9, 2, 8, 3, 7, 4, 6, 5, 5, 5, 5]
    columns = {"x": [s["x"].tolist() for s in tiny.vectors(12)], "labels": [0] * 12, "size": sizes}
    trainer = trainer_for(
        tmp_path,
        train_sampling_strategy="group_by_length",
        length_column_name="size",
        remove_unused_columns=False,
        per_device_train_batch_size=12,
    )
    trainer.train_dataset = datasets.Dataset.from_dict(columns)
    (batch,) = trainer.get_train_dataloader()
    size_of = {round(row[0], 4): size for row, size in zip(columns["x"], sizes, strict=True)}
    taken = [size_of[round(value, 4)] for value in batch["x"][:, 0].tolist()]
    assert taken == sorted(sizes, reverse=True)


def test_torch_compile_compiles(tmp_path: Path) -> None:
    for arguments in ({"torch_compile": True}, {"torch_compile_mode": "default"}, {"torch_compile_backend": "eager"}):
        trainer = trainer_for(tmp_path, save_strategy="no", max_steps=1, **arguments)
        trainer.args.torch_compile_backend = "eager"  # the default one compiles C++ for minutes
        trainer.train()
        assert type(trainer.model_wrapped).__name__ == "OptimizedModule", arguments
    torch._dynamo.reset()
