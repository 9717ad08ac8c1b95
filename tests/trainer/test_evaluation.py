"""Evaluation: the same numbers as transformers' on one process, and on every number of processes."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from trainer.evaluation_cases import Nested, RunningAccuracy, accuracy, evaluate_cases, make_trainer, pad, sample
from trainer.world import in_world
from trainwright.contract import DataError, UserError
from trainwright.evaluation.gathering import Collector, leaves

CASES: dict[str, dict[str, Any]] = {
    "even": {"length": 10},
    "uneven": {"length": 11},
    "fewer than ranks": {"length": 1},
    "a stream": {"length": 11, "stream": True},
    "a stream read by all": {"length": 11, "stream": True, "accelerator_config": {"dispatch_batches": False}},
    "inputs and losses": {"length": 11, "include_for_metrics": ["inputs", "loss"]},
    "objects": {"length": 11, "eval_use_gather_object": True},
    "to the host": {"length": 11, "eval_accumulation_steps": 2},
    "batch by batch": {"length": 10, "batch_eval_metrics": True, "running": True},
    "lists": {"length": 11, "eval_do_concat_batches": False, "prediction_loss_only": True},
}


def assert_same(one: Any, other: Any, case: str) -> None:
    assert one[0].keys() == other[0].keys(), case
    for name in one[0]:
        if "calls" not in name:
            assert one[0][name] == pytest.approx(other[0][name], abs=1e-6), f"{case}: {name}"
    for mine, theirs in zip(leaves(one[1:]), leaves(other[1:]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6, err_msg=case)


def test_one_two_and_three_processes_agree() -> None:
    alone = evaluate_cases(list(CASES.values()))
    for size in (2, 3):
        for rank, results in enumerate(in_world(size, "trainer.evaluation_cases:evaluate_cases", list(CASES.values()))):
            for case, one, other in zip(CASES, alone, results, strict=True):
                assert_same(one, other, f"{case}, rank {rank} of {size}")


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("a stream read by all", "objects")])
def test_one_process_agrees_with_transformers(case: str) -> None:
    arguments = dict(CASES[case])
    length, running = arguments.pop("length"), arguments.pop("running", False)
    if arguments.pop("stream", False):
        pytest.skip("its collator drops columns that a stream has not")
    ours = make_trainer(length, metrics=RunningAccuracy() if running else accuracy, **arguments)
    torch.manual_seed(0)
    args = transformers.TrainingArguments(
        tempfile.gettempdir(),
        per_device_eval_batch_size=2,
        use_cpu=True,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        **arguments,
    )
    theirs = transformers.Trainer(
        Nested(),
        args,
        data_collator=pad,
        eval_dataset=[sample(index) for index in range(length)],
        compute_metrics=RunningAccuracy() if running else accuracy,
    )
    expected, found = theirs.evaluate(), ours.evaluate()
    assert found.keys() == expected.keys()
    for name in (name for name in expected if "second" not in name and "time" not in name):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    expected_output, output = theirs.predict(theirs.eval_dataset), ours.predict(ours.eval_dataset)
    for mine, other in zip(leaves(output[:2]), leaves(expected_output[:2]), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def test_metrics_are_plain_numbers_under_their_prefix() -> None:
    metrics = make_trainer(5).evaluate(metric_key_prefix="test")
    assert {"test_right", "test_rows", "test_loss", "test_runtime"} <= metrics.keys()
    assert {type(value) for value in metrics.values()} <= {int, float}


def test_preprocessing_sees_logits_and_labels() -> None:
    trainer = make_trainer(5, metrics=None)
    trainer.preprocess_logits_for_metrics = lambda logits, labels: (logits[0].argmax(-1) == labels).sum(-1)
    predictions = trainer.predict(trainer.eval_dataset).predictions
    assert predictions.shape == (5,)


def test_ragged_batches_are_padded_to_the_longest() -> None:
    output = make_trainer(7, metrics=None).predict([sample(index) for index in range(7)])
    logits, labels = output.predictions[0], output.label_ids
    assert logits.shape == (7, 7, 3)
    assert labels.shape == (7, 7)
    assert (logits[labels == -100] <= 1e9).all()
    assert (labels[0, 1:] == -100).all()


def test_an_empty_set_is_a_data_error() -> None:
    for empty in (make_trainer(0), make_trainer(0, stream=True)):
        with pytest.raises(DataError, match="eval_dataset: it is empty"):
            empty.evaluate()


def test_an_output_that_is_no_tensor_is_named() -> None:
    trainer = make_trainer(3)
    forward = trainer.model.forward
    trainer.model.forward = lambda input_ids, labels=None: {**forward(input_ids, labels), "cache": object()}
    with pytest.raises(UserError, match="returns a object, which cannot be gathered; name its key in ignore_keys"):
        trainer.evaluate()
    assert trainer.evaluate(ignore_keys=["cache"])["eval_rows"] == 3


def test_nan_losses_are_left_out_where_the_filter_is_on() -> None:
    for filtered, expected in ((True, 1.0), (False, float("nan"))):
        trainer = make_trainer(4, metrics=None, logging_nan_inf_filter=filtered)
        values = iter([torch.tensor(1.0), torch.tensor(float("nan"))])
        trainer.compute_loss = lambda *args, values=values, **kwargs: (next(values), {})
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, nan_ok=True)


def test_collected_rows_need_no_second_array() -> None:
    """Where the number of rows is known, each batch is copied once, to its place."""
    collector = Collector(concatenate=True, every=None, expected=6)
    collector.add(torch.ones(2, 3))
    place = collector._columns[0]._array
    collector.add(torch.ones(4, 3))
    assert np.shares_memory(collector.take(), place)


def test_rows_of_different_dimensions_are_an_error() -> None:
    collector = Collector(concatenate=True, every=None)
    collector.add(torch.ones(2, 3))
    with pytest.raises(UserError, match="batches of 2 and of 3 dimensions cannot be put together"):
        collector.add(torch.ones(2, 3, 1))
