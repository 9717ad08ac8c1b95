"""The card of a model tells what that of transformers tells, and the Hub's own reader takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from transformers.modelcard import TrainingSummary, extract_hyperparameters_from_trainer

from trainer import tiny
from trainer.runs import make

GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "all": {
        "language": "en", "license": "mit", "tags": ["mine", "generated_from_trainer"], "model_name": "named",
        "finetuned_from": "me/base", "tasks": ["text-classification", "token-classification"],
        "dataset_tags": ["glue", "imdb"], "dataset": ["GLUE", "IMDb"], "dataset_args": ["mrpc", None],
    },
    "texts": {"language": "de", "tags": "mine", "tasks": "text-classification", "dataset_tags": "imdb"},
    "a dataset by name alone": {"dataset": "my notes", "tasks": "text-classification"},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained classifier, whose evaluation set says that it comes from the Hub."""
    data = datasets.Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in tiny.sentences(12)])
    data.info.builder_name, data.info.config_name, data._split = "glue", "sst2", datasets.Split.VALIDATION
    trainer = make(
        tmp_path_factory.mktemp("card") / "classifier", tiny.bert(), data.with_format("torch"), max_steps=4,
        eval_strategy="steps", eval_steps=2, logging_steps=2, gradient_accumulation_steps=2, warmup_steps=1,
        trainer={"eval_dataset": data, "compute_metrics": lambda p: {"accuracy": 0.25, "f1_macro": 0.0004}},
    )  # fmt: skip
    trainer.train()
    return trainer


def theirs(run: Any) -> Any:
    """transformers' Trainer with the same run behind it."""
    values = {name: value for name, value in run.args.to_dict().items() if name not in ("hub_token", "report_to")}
    args = transformers.TrainingArguments(**values, report_to="none")
    trainer = transformers.Trainer(run.model, args, train_dataset=run.train_dataset, eval_dataset=run.eval_dataset)
    trainer.state.log_history = run.state.log_history
    return trainer


@pytest.mark.parametrize("given", GIVEN)
def test_the_metadata_are_those_of_transformers(given: str, run: Any) -> None:
    (Path(run.args.output_dir) / "README.md").unlink(missing_ok=True)
    run.create_model_card(**GIVEN[given])
    card = ModelCard.load(Path(run.args.output_dir) / "README.md")
    written = yaml.safe_load(card.content.split("---\n")[1])
    summary = TrainingSummary.from_trainer(theirs(run), **GIVEN[given])
    expected = yaml.safe_load(yaml.safe_dump(summary.create_metadata()))
    assert written.pop("model-index") == expected.pop("model-index")
    assert written == expected


def test_the_text_tells_what_transformers_tells(run: Any) -> None:
    run.create_model_card()
    text = (Path(run.args.output_dir) / "README.md").read_text()
    summary = TrainingSummary.from_trainer(trainer := theirs(run))
    for name in extract_hyperparameters_from_trainer(trainer).keys() - {"distributed_type"}:
        assert f"\n- {name}: " in text
    results = summary.eval_results
    assert [f"- {name}: " in text for name in results] == [True] * len(results)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert table[0] == list(summary.eval_lines[0])
    assert [row[2] for row in table[2:]] == [str(line["Step"]) for line in summary.eval_lines] == ["2", "4"]
    assert [float(row[table[0].index("Validation Loss")]) for row in table[2:]] == pytest.approx(
        [line["Validation Loss"] for line in summary.eval_lines], abs=1e-4
    )
    assert "- F1 Macro: 0.0004\n" in text
    assert "- learning_rate: 0.01\n" in text
    assert f"- Pytorch {torch.__version__}" in text


def test_any_module_has_a_card_and_its_tags_are_kept(tmp_path: Path) -> None:
    trainer = make(tmp_path / "plain")
    trainer.create_model_card(tags=["first"], language="en")
    trainer.create_model_card(tags="second")
    card = ModelCard.load(tmp_path / "plain" / "README.md")
    assert card.data.tags == ["second", "first", "generated_from_trainer"]
    assert "Trained from scratch.\n" in card.text
    assert card.data.base_model is None


def test_each_of_several_sets_is_told_of(tmp_path: Path) -> None:
    sets = {"near": tiny.vectors(4), "far": tiny.vectors(5)}
    trainer = make(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, trainer={"eval_dataset": sets})
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert all(f"\n- {name} Loss: " in text for name in ("Near", "Far"))
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 2
    assert "Near Loss" in table[0]
    assert "Runtime" not in text


def test_an_adapter_completes_its_card(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny.bert(), peft.LoraConfig(target_modules=["query"], r=2))
    trainer = make(tmp_path, model, tiny.sentences())
    trainer.save_model()
    trainer.create_model_card(finetuned_from="me/base", license="mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == "me/base"
    assert {"generated_from_trainer", "lora"} <= set(card.data.tags)
    assert "### Training hyperparameters" in card.text
