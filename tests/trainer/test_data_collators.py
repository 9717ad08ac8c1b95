"""Collators against those of transformers, and the guards around any collator."""

from __future__ import annotations

import pickle
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

from trainer.resume_job import Net, make_trainer
from trainwright.contract import DataError
from trainwright.data.collators import (
    DataCollatorWithPadding,
    DefaultDataCollator,
    GuardedCollate,
    KeepColumns,
    default_collator_for,
    default_data_collator,
)
from trainwright.data.loaders import keep_used_columns, signature_columns

BATCHES: dict[str, list[Any]] = {
    "lists and an integer label": [{"x": [1, 2], "label": 1}, {"x": [3, 4], "label": 0}],
    "a float label": [{"x": [1.5], "label": 0.5}, {"x": [2.5], "label": 1.0}],
    "a label that is a tensor": [{"label": torch.tensor(2)}, {"label": torch.tensor(0)}],
    "label ids": [{"label_ids": [1, 0]}, {"label_ids": [0, 1]}],
    "label ids as tensors": [{"label_ids": torch.tensor([1.0, 0.0])}, {"label_ids": torch.tensor([0.0, 1.0])}],
    "tensors and arrays": [{"a": torch.ones(2), "b": np.zeros((2, 1))}, {"a": torch.ones(2), "b": np.ones((2, 1))}],
    "strings and None are left out": [{"a": 1, "name": "one", "none": None}, {"a": 2, "name": "two", "none": None}],
    "a boolean label": [{"label": True}, {"label": False}],
    "objects": [transformers.tokenization_utils_base.BatchEncoding({"a": [1]})] * 2,
}


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("case", BATCHES)
def test_default_collator_is_that_of_transformers(case: str, kind: str) -> None:
    if kind == "np" and "tensor" in case:
        pytest.skip("theirs fails on tensors")
    expected = transformers.default_data_collator(BATCHES[case], return_tensors=kind)
    for found in (default_data_collator(BATCHES[case], kind), DefaultDataCollator(kind)(BATCHES[case])):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert np.array_equal(found[name], value)


class Tokenizer:
    """As much of a tokenizer as padding asks for."""

    def __init__(self) -> None:
        self.deprecation_warnings: dict[str, bool] = {}
        self.warned = True

    def pad(self, features: list[Any], **options: Any) -> dict[str, Any]:
        self.warned = not self.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"]
        longest = max(len(feature["input_ids"]) for feature in features)
        padded = [feature["input_ids"] + [0] * (longest - len(feature["input_ids"])) for feature in features]
        return {"input_ids": torch.tensor(padded), "label": torch.tensor([feature["label"] for feature in features])}


def test_padding_renames_the_label_and_keeps_quiet() -> None:
    tokenizer = Tokenizer()
    features = [{"input_ids": [1, 2], "label": 1}, {"input_ids": [1], "label": 0}]
    batch = DataCollatorWithPadding(tokenizer)(features)
    assert batch["input_ids"].tolist() == [[1, 2], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert "label" not in batch
    assert not tokenizer.warned
    assert tokenizer.deprecation_warnings == {"Asking-to-pad-a-fast-tokenizer": False}
    assert isinstance(default_collator_for(tokenizer), DataCollatorWithPadding)
    assert default_collator_for(None) is default_data_collator


def test_columns_of_a_dataset_are_removed_at_once() -> None:
    dataset = datasets.Dataset.from_dict({"x": [[1.0]], "label": [0], "text": ["a"]})
    columns = signature_columns(Net(), ["labels"])
    kept, collate = keep_used_columns(dataset, list, columns, description="training", model_name="Net")
    assert kept.column_names == ["x", "label"]
    assert collate is list


def test_keys_of_other_samples_are_left_out_while_collating() -> None:
    collate = KeepColumns(list, ["x", "label"], "Net")
    assert collate([{"x": 1, "text": "a"}, {"x": 2, "label": 3}]) == [{"x": 1}, {"x": 2, "label": 3}]
    untouched = [{"x": 1}, {"x": 2}]
    assert all(one is other for one, other in zip(collate(untouched), untouched, strict=True))
    assert collate([(1, 2)]) == [(1, 2)]


@pytest.mark.parametrize("kind", ["dataset", "list"])
def test_a_set_of_which_nothing_would_be_left_names_its_columns(kind: str, tmp_path: Any) -> None:
    samples = [{"text": "a", "id": 1}] * 4
    trainer = make_trainer(str(tmp_path), remove_unused_columns=True)
    trainer.train_dataset = datasets.Dataset.from_list(samples) if kind == "dataset" else samples
    with pytest.raises(DataError) as caught:
        trainer.train()
    assert str(caught.value).startswith(
        "remove_unused_columns: Net.forward takes none of the columns id, text (it takes"
    )
    assert "\n" not in str(caught.value)


def test_the_length_column_orders_though_the_model_does_not_take_it(tmp_path: Any) -> None:
    rows = {"x": [[float(i)] * 6 for i in range(8)], "labels": [0] * 8, "size": [3, 1, 4, 1, 5, 9, 2, 6]}
    trainer = make_trainer(
        str(tmp_path), remove_unused_columns=True, train_sampling_strategy="group_by_length", length_column_name="size"
    )
    trainer.data_collator, trainer.train_dataset = default_data_collator, datasets.Dataset.from_dict(rows)
    first = next(iter(trainer.get_train_dataloader()))
    assert first["x"][0, 0] == 5  # the index of the longest, which comes first


def test_guards_can_be_sent_to_data_workers() -> None:
    guarded = pickle.loads(pickle.dumps(GuardedCollate(KeepColumns(default_data_collator, ["x"], "Net"))))
    assert guarded([{"x": 1, "y": 2}])["x"].tolist() == [1]
