"""Mistakes of the user: one line each that names the argument, the reason and the mend; and nothing saved is lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer import tiny
from trainer.data_cases import Stream
from trainer.runs import logged, make, trained
from trainwright import Trainer
from trainwright.contract import DataError, ExitCode, UserError

ROWS = [{"x": torch.ones(8), "labels": index % 4} for index in range(16)]


def one_line(caught: Any) -> str:
    said = str(caught.value)
    assert "\n" not in said
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with the checkpoints 2 and 4 of a run."""
    output = tmp_path_factory.mktemp("saved")
    make(output, save_strategy="steps", save_steps=2, max_steps=4).train()
    return output


@pytest.fixture
def output(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "out")
    return tmp_path / "out"


# -- models


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return tiny.Classifier()


def frozen() -> nn.Module:
    return tiny.classifier().requires_grad_(False)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "meta": (on_meta, "model: parameter hidden.weight is on the meta device and holds no values; load or initialise"),
    "frozen": (frozen, "model: no parameter of Classifier requires a gradient; unfreeze those that shall be trained"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_trained_is_refused_and_the_output_unchanged(case: str, output: Path) -> None:
    model, words = MODELS[case]
    before = contents(output)
    with pytest.raises(UserError) as caught:
        make(output, model()).train()
    assert one_line(caught).startswith(words)
    assert contents(output) == before


def tied_silently() -> nn.Module:
    model = tiny.gpt2()
    model.transformer.h[1].attn.c_attn.weight = model.transformer.h[0].attn.c_attn.weight
    return model


def test_a_weight_that_is_tied_silently_is_told_before_the_first_step(tmp_path: Path) -> None:
    """By transformers it would be at the first checkpoint."""
    with pytest.raises(UserError) as caught:
        make(tmp_path, tied_silently(), tiny.texts(), save_strategy="steps").train()
    said = one_line(caught)
    assert said.startswith("model: GPT2LMHeadModel shares one weight under several names (transformer.h.")
    assert "; list all but one in its _tied_weights_keys, or give each name its own copy" in said
    make(tmp_path, tied_silently(), tiny.texts(), max_steps=1).train()  # without a checkpoint it is trained


def test_an_optimizer_without_parameters_of_the_model_is_refused(tmp_path: Path) -> None:
    empty = torch.optim.SGD([{"params": []}], lr=0.1)
    with pytest.raises(UserError, match=r"^optimizers: the optimizer holds no parameters; make it from model.param"):
        make(tmp_path, trainer={"optimizers": (empty, None)}).train()
    of_another = torch.optim.SGD(tiny.classifier().parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"^optimizers: the optimizer holds none of the model's parameters, so nothing"):
        make(tmp_path, trainer={"optimizers": (of_another, None)}).train()


# -- losses that are no numbers


class Exploding(tiny.Classifier):
    """Its loss is NaN from the third call on."""

    calls = 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        loss, logits = super().forward(x, labels)
        self.calls += 1
        return loss * (math.nan if self.calls > 2 else 1), logits


def test_a_loss_of_nan_is_logged_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As transformers' Trainer the run goes on; every file stays strict JSON, and the log comes back as it was."""
    arguments: dict[str, Any] = {"max_steps": 4, "logging_nan_inf_filter": False, "eval_strategy": "no"}
    trainer = make(tmp_path, Exploding(), save_strategy="steps", save_steps=2, **arguments)
    result = trainer.train()
    trainer.save_metrics("train", result.metrics)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [math.isnan(loss) for loss in losses] == [False, False, True, True]
    assert caplog.text.count("the loss of step 3 is not a finite number") == 1
    files = [*tmp_path.glob("*.json"), *tmp_path.glob("checkpoint-4/*.json")]
    assert {"train_results.json", "trainer_state.json"} <= {file.name for file in files}
    for file in files:
        json.loads(file.read_text(), parse_constant=lambda word, file=file: pytest.fail(f"{file}: {word}"))
    loaded = type(trainer.state).load_from_json(tmp_path / "checkpoint-4" / "trainer_state.json")
    assert [math.isnan(entry["loss"]) for entry in loaded.log_history] == [False, False, True, True]


def test_a_run_of_nan_is_told_once_also_by_the_filter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(tmp_path, Exploding(), max_steps=8, logging_steps=4)
    metrics = trainer.train().metrics
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(losses[0])
    assert math.isnan(losses[1])
    assert metrics["train_loss"] == pytest.approx(losses[0])
    told = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert [words.partition(" is not")[0] for words in told] == ["the loss of step 3", "the gradient norm of step 4"]


# -- evaluation


def test_a_missing_eval_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(tmp_path, eval_strategy="steps", trainer={"eval_dataset": None})
    assert one_line(caught) == "eval_dataset: eval_strategy asks for evaluations; give a set, or set it to 'no'"
    with pytest.raises(UserError, match=r"^eval_dataset: the Trainer was made without one; give it here, or to the"):
        make(tmp_path, trainer={"eval_dataset": None}).evaluate()


# -- checkpoints


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits = self.head(x)
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


def test_a_checkpoint_of_another_model_is_refused_and_stays_as_it_is(output: Path) -> None:
    before = contents(output)
    with pytest.raises(UserError) as caught:
        make(output, Wide()).train(resume_from_checkpoint=True)
    said = one_line(caught)
    assert said.startswith(f"{output}/checkpoint-4: is a checkpoint of another model: missing layers.0.weight; ")
    differences = said.split("another model: ")[1].split(" and ")[0].split("; ")
    assert len(differences) == 10
    assert said.endswith("more; create the model as it was trained, or train from the start in another output_dir")
    assert contents(output) == before


def test_shapes_of_another_model_are_named(output: Path) -> None:
    model = tiny.Classifier()
    model.head = nn.Linear(16, 7)
    with pytest.raises(UserError, match=r"head.weight is \(4, 16\) there and \(7, 16\) here; create the model"):
        make(output, model).train(resume_from_checkpoint=str(output / "checkpoint-2"))


@pytest.mark.parametrize("by", ["ours", "another library"])
def test_a_corrupted_trainer_state_is_skipped_unless_named_and_stays_as_it_is(by: str, output: Path) -> None:
    """It is passed over for the checkpoint before it; who names it is told, and it stays where it is."""
    newest = output / "checkpoint-4"
    (newest / "trainer_state.json").write_text('{"global_step": 4, "log_his')
    if by == "another library":
        (newest / "trainwright_manifest.json").unlink()
    before = contents(newest)
    with pytest.raises(UserError) as caught:
        make(output).train(resume_from_checkpoint=str(newest))
    assert one_line(caught).startswith(f"resume_from_checkpoint: {newest} cannot be used: ")
    assert "trainer_state.json" in str(caught.value)
    assert str(caught.value).endswith("; take another one")
    trainer = make(output, max_steps=3)
    with pytest.warns(UserWarning, match="checkpoint-4 is skipped"):
        trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3]
    assert contents(newest) == before


def test_resuming_from_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert one_line(caught) == (
        f"resume_from_checkpoint: Can't find a valid checkpoint at {tmp_path}/checkpoint-9: it does not exist; give "
        "the path of a checkpoint-N folder"
    )
    with pytest.raises(UserError, match=r"^resume_from_checkpoint: No valid checkpoint found in output dire"):
        make(tmp_path).train(resume_from_checkpoint=True)


# -- data


def rows(**columns: Any) -> list[dict[str, Any]]:
    return [{**row, **columns} for row in ROWS]


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits = self.head(self.filters(x).mean((2, 3)))
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


def images(kind: torch.dtype) -> list[dict[str, Any]]:
    return [{"x": torch.ones(1, 5, 5, dtype=kind), "labels": 1}] * 8


def several() -> nn.Module:
    model = tiny.bert()
    model.config.problem_type = "multi_label_classification"
    return model


def tagged(kind: torch.dtype) -> list[dict[str, Any]]:
    return [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 0, 1, 0], dtype=kind)}] * 8


DATA: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"data": []}, "train_dataset: it is empty; give it samples"),
    "an empty stream": ({"data": Stream(0), "max_steps": 2}, "train_dataset: it is empty; give it samples"),
    "numbers for samples": (
        {"data": list(range(16)), "remove_unused_columns": False},
        "train_dataset or eval_dataset: a sample is a int; make samples mappings from the names of the model's",
    ),
    "tuples for samples": (
        {"data": [(torch.ones(8), 1)] * 16, "remove_unused_columns": False},
        "train_dataset or eval_dataset: a sample is a tuple; make samples mappings",
    ),
    "words for labels": (
        {"data": [{"x": torch.ones(8), "label": "positive"}] * 16},
        "data_collator: the column 'label' cannot be stacked (too many dimensions 'str'; its values are str); make",
    ),
    "words for numbers": (
        {"data": rows(x=["a"] * 8)},
        "data_collator: the column 'x' cannot be stacked (too many dimensions 'str'; its values are list); make them",
    ),
    "ragged": (
        {"data": [{**row, "x": [1.0] * (1 + index)} for index, row in enumerate(ROWS)]},
        "data_collator: the column 'x' cannot be stacked (expected sequence of length ",
    ),
    "a missing column": (
        {"data": [*ROWS[:3], {"x": torch.ones(8)}] * 4, "train_sampling_strategy": "sequential"},
        "data_collator: a sample lacks the column 'labels' that the first one has (it has x); give every sample",
    ),
    "float64": (
        {"data": rows(x=torch.ones(8, dtype=torch.float64))},
        "x: its values are float64, and the model computes in float32; convert the column",
    ),
    "pixels of 8 bits": (
        {"model": Conv, "data": images(torch.uint8)},
        "x: its values are uint8, and the model computes in float32; convert the column",
    ),
    "float64 for a convolution": (
        {"model": Conv, "data": images(torch.float64)},
        "x: its values are float64, and the model computes in float32; convert the column",
    ),
    "float32 for a model in bf16": (
        {"model": lambda: tiny.classifier().bfloat16()},
        "x: its values are float32, and the model computes in bfloat16; load the model in float32 and set bf16, or",
    ),
    "lists for tensors": (
        {"trainer": {"data_collator": lambda samples: {"x": [[1.0] * 8] * 8, "labels": torch.ones(8).long()}}},
        "data_collator: x is a list in the batch, and the model takes tensors; make it one by torch.tensor",
    ),
    "arrays for tensors": (
        {"trainer": {"data_collator": lambda samples: {"x": np.ones((8, 8)), "labels": torch.ones(8).long()}}},
        "data_collator: x is a ndarray in the batch, and the model takes tensors; make it one by torch.tensor",
    ),
    "two classes a sample": (
        {"data": rows(labels=torch.tensor([1, 2]))},
        "labels: its shape in the batch is (8, 2), and the loss takes one class number for each output; give every",
    ),
    "a class as a row of whole numbers": (
        {"data": rows(labels=torch.tensor([0, 1, 0, 0]))},
        "labels: its values are int64, and a loss over several classes at once takes float32 (0.0 and 1.0); convert",
    ),
    "several classes in whole numbers": (
        {"model": several, "data": tagged(torch.int64)},
        "labels: its values are int64, and a loss over several classes at once takes float32 (0.0 and 1.0); convert",
    ),
    "a class too many": (
        {"data": rows(labels=7)},
        "labels: Target 7 is out of bounds, where the loss takes class numbers from 0 to the number of the model's",
    ),
    "no column is known": (
        {"data": [{"text": "a"}] * 16},
        "remove_unused_columns: Classifier.forward takes none of the columns text (it takes ",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_trained_on_is_refused_and_the_output_unchanged(case: str, output: Path) -> None:
    arguments, words = DATA[case]
    before = contents(output)
    model = arguments.get("model", tiny.classifier)()
    with pytest.raises(DataError) as caught:
        make(output, **{**arguments, "model": model}).train()
    assert one_line(caught).startswith(words)
    assert contents(output) == before


def drops_everything(samples: list[Any]) -> dict[str, Any]:
    return {}


def makes_a_list(samples: list[Any]) -> list[Any]:
    return [sample["x"] for sample in samples]


COLLATORS: dict[str, tuple[Callable[..., Any], str]] = {
    "drops everything": (drops_everything, "data_collator: the batch is empty; name the columns as the arguments of"),
    "makes a list": (makes_a_list, "data_collator: a batch must be a mapping of "),
}


@pytest.mark.parametrize("case", COLLATORS)
def test_a_collator_whose_batch_cannot_be_used_is_refused(case: str, tmp_path: Path) -> None:
    collator, words = COLLATORS[case]
    trainer = make(tmp_path, trainer={"data_collator": collator})
    with pytest.raises(DataError) as caught:
        trainer.train()
    assert one_line(caught).startswith(words)
    if case == "makes a list":
        with pytest.raises(DataError, match=r"^" + words):
            trainer.evaluate()


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    data = [{"input_ids": torch.tensor([1, 2, 99]), "labels": torch.tensor([1, 2, 3])}] * 8
    words = "input_ids: the batch holds the token number 99, and the model's vocabulary has 32 (0 to 31); use the tok"
    trainer = make(tmp_path, tiny.gpt2(), data, trainer={"eval_dataset": data})
    for act in (trainer.train, trainer.evaluate):
        with pytest.raises(DataError) as caught:
            act()
        assert one_line(caught).startswith(words)


def test_tokens_that_are_not_integers_are_refused(tmp_path: Path) -> None:
    data = [{"input_ids": torch.tensor([1.0, 2.0]), "labels": torch.tensor([1, 2])}] * 8
    with pytest.raises(DataError, match=r"^input_ids: its values are float32, and token numbers must be integers"):
        make(tmp_path, tiny.gpt2(), data).train()


@pytest.mark.parametrize(("make_model", "classes"), [(tiny.gpt2, 32), (tiny.bert, 4)])
def test_a_label_beyond_the_classes_of_the_model_is_refused(make_model: Any, classes: int, tmp_path: Path) -> None:
    is_classifier = classes == 4
    labels = 9 if is_classifier else torch.tensor([1, 2, 77])
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": labels}] * 8
    wrong = 9 if is_classifier else 77
    with pytest.raises(DataError) as caught:
        make(tmp_path, make_model(), data).train()
    assert one_line(caught).startswith(
        f"labels: the batch holds the class {wrong}, and the model has {classes} (0 to {classes - 1}, -100 for none); "
    )


def test_a_text_is_judged_by_its_last_token_that_is_no_padding(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0)
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": 1}] * 8
    with pytest.raises(UserError) as caught:
        make(tmp_path, GPT2ForSequenceClassification(config), data).train()
    assert "config has no pad_token_id; set model.config.pad_token_id = tokenizer.pad_token_id" in one_line(caught)


def test_several_classes_at_once_are_not_smoothed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As transformers' Trainer drops the smoothing, and says so."""
    runs = [
        trained(tmp_path, several(), tagged(torch.float32), max_steps=2, label_smoothing_factor=factor)
        for factor in (0.0, 0.1)
    ]
    assert logged(runs[0], "loss") == logged(runs[1], "loss")
    assert "label_smoothing_factor is not for multi_label_classification: nothing is smoothed" in caplog.text


def test_a_wrong_class_late_in_a_run_loses_nothing(output: Path) -> None:
    data = [*ROWS, *ROWS, *ROWS, {"x": torch.ones(8), "labels": 8}]
    before = contents(output / "checkpoint-4")
    trainer = make(output, data=data, train_sampling_strategy="sequential", save_strategy="steps", save_steps=5)
    with pytest.raises(DataError, match=r"^labels: Target 8 is out of bounds"):
        trainer.train()
    assert trainer.checkpoints.newest() == output / "checkpoint-5"
    assert contents(output / "checkpoint-4") == before


def test_a_mistake_of_the_model_itself_is_not_explained_away(tmp_path: Path) -> None:
    class Broken(tiny.Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            raise RuntimeError("of my own making")

    with pytest.raises(RuntimeError, match="of my own making"):
        make(tmp_path, Broken()).train()
    model = tiny.gpt2()
    model.forward = Broken.forward.__get__(model)
    data = [{"x": torch.ones(8), "labels": torch.tensor([99])}] * 8  # beyond the vocabulary, but not what is wrong
    with pytest.raises(RuntimeError, match="of my own making"):
        make(tmp_path, model, data).train()


# -- what the user sees

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from trainer.test_bad_input import Wide, ROWS
from trainer.runs import make
{line}
"""

SEEN = {
    "bad data": ("make({output!r}, data=[{{**row, 'labels': 7}} for row in ROWS]).train()", ExitCode.BAD_DATA),
    "another model": ("make({output!r}, Wide()).train(resume_from_checkpoint=True)", ExitCode.BAD_CONFIGURATION),
}


@pytest.mark.parametrize("case", SEEN)
def test_a_script_under_the_launcher_prints_one_line(case: str, output: Path, tmp_path: Path) -> None:
    line, code = SEEN[case]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), line=line.format(output=str(output))))
    run = subprocess.run(
        [sys.executable, "-m", "trainwright.launch.entry", str(script)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == code
    assert "Traceback" not in run.stderr
    assert len([line for line in run.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_arguments_of_transformers_that_leave_their_process_out_of_its_group_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do on a machine without an accelerator: every rank would train by itself and save over the others."""
    if torch.accelerator.is_available():
        pytest.skip("where there is an accelerator they join")
    accelerate.PartialState._reset_state()
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a process group puts its own there
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        args = transformers.TrainingArguments(str(tmp_path), report_to="none")
        with pytest.raises(UserError, match="use_cpu: this process is one of 2"):
            Trainer(tiny.classifier(), args, train_dataset=tiny.vectors())
    finally:
        torch.distributed.destroy_process_group()
        accelerate.PartialState._reset_state()
