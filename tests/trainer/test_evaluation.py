"""Evaluation: the same numbers as transformers' on one process, and on every number of processes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import trainwright
from trainer import tiny
from trainer.evaluation_cases import Nested, RunningAccuracy, accuracy, evaluate_cases, make_trainer, pad, sample
from trainer.runs import make
from trainer.settings import settings
from trainer.world import in_world
from trainwright import Trainer, TrainerCallback
from trainwright.contract import DataError, UserError
from trainwright.distributed.collectives import Collector, leaves

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not filled up": {"accelerator_config": {"even_batches": False}},
    "dealt by rank 0": {"accelerator_config": {"dispatch_batches": True}},
    "a stream": {"stream": True},
    "a stream read by all": {"stream": True, "accelerator_config": {"dispatch_batches": False}},
    "a stream not filled up": {"stream": True, "accelerator_config": {"even_batches": False}},
    "inputs and losses": {"include_for_metrics": ["inputs", "loss"]},
    "objects": {"eval_use_gather_object": True},
    "to the host": {"eval_accumulation_steps": 2},
    "batch by batch": {"batch_eval_metrics": True, "running": True},
    "batch by batch, objects": {"batch_eval_metrics": True, "running": True, "eval_use_gather_object": True},
    "by length": {"train_sampling_strategy": "group_by_length"},
    "loss alone": {"prediction_loss_only": True},
}
DEALING = ("plain", "not filled up", "dealt by rank 0", "a stream", "a stream read by all")
CASES: dict[str, dict[str, Any]] = {
    f"{kind}, {length}": {"length": length, **arguments}
    for kind, arguments in KINDS.items()
    for length in (10, 11)
    if length == 11 or kind in DEALING
} | {
    "fewer than ranks": {"length": 1},
    "nothing": {"length": 0},
    "a stream of nothing": {"length": 0, "stream": True},
    "a stream of fewer than ranks": {"length": 1, "stream": True},
    "lists": {"length": 11, "eval_do_concat_batches": False, "prediction_loss_only": True},
}
CASES |= {f"{case}, though training drops": {**CASES[case], "dataloader_drop_last": True} for case in (
    "plain, 11", "dealt by rank 0, 11", "a stream, 11", "a stream read by all, 11", "by length, 11", "fewer than ranks"
)}  # fmt: skip
"""What one, two and three processes must agree on: with 10 samples two ranks have equal shares, with 11 nobody has."""


def assert_same(one: Any, other: Any, case: str) -> None:
    assert one[0].keys() == other[0].keys(), case
    for name in one[0]:
        if "calls" not in name:
            assert one[0][name] == pytest.approx(other[0][name], abs=1e-6), f"{case}: {name}"
    for mine, theirs in zip(leaves(one[1:]), leaves(other[1:]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6, err_msg=case)


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return evaluate_cases(list(CASES.values()))


def test_what_training_drops_is_judged_all_the_same(alone: list[Any]) -> None:
    """Where transformers leaves out of its metrics and predictions what does not fill a batch."""
    results = dict(zip(CASES, alone, strict=True))
    for case in (case for case in CASES if "though training drops" in case):
        assert_same(results[case], results[case.removesuffix(", though training drops")], case)


@pytest.mark.parametrize("size", [2, 3])
def test_one_two_and_three_processes_agree(size: int, alone: list[Any]) -> None:
    in_ranks = in_world(size, "trainer.evaluation_cases:evaluate_cases", list(CASES.values()), longest=280)
    for rank, results in enumerate(in_ranks):
        for case, one, other in zip(CASES, alone, results, strict=True):
            assert_same(one, other, f"{case}, rank {rank} of {size}")


UNLIKE = ("stream", "objects", "dealt", "training drops")
ALIKE = [name for name in CASES if not any(word in name for word in UNLIKE)]
"""The cases in which transformers' Trainer can be asked, too: it gathers objects only among several processes."""


@pytest.mark.parametrize("case", ALIKE)
def test_one_process_agrees_with_transformers(case: str) -> None:
    arguments = dict(CASES[case])
    length, running = arguments.pop("length"), arguments.pop("running", False)
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


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "doubled"])
def test_a_batch_counts_by_its_samples_whatever_rows_it_has(joined: bool, tmp_path: Path) -> None:
    """A collator that makes one row of all samples, as packing does, or two of each, as preferences do."""

    def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        rows = torch.stack([sample["x"] for sample in samples])
        wanted = torch.stack([sample["labels"] for sample in samples])
        return {"x": rows[None], "labels": wanted} if joined else {"x": rows.repeat(2, 1), "labels": wanted.repeat(2)}

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            scores = self.linear(x.flatten(0, 1) if joined else x)
            return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 4)

    data, found = tiny.vectors(9), []
    for library in (transformers, trainwright):
        torch.manual_seed(0)
        args = library.TrainingArguments(
            str(tmp_path), use_cpu=True, per_device_eval_batch_size=4, disable_tqdm=True, report_to="none"
        )
        found.append(library.Trainer(Model(), args, data_collator=collate, eval_dataset=data).evaluate())
    theirs, ours = found
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], abs=1e-6)
    assert ours["eval_samples_per_second"] * ours["eval_runtime"] == pytest.approx(9, rel=0.5)


def test_each_of_several_sets_is_told_under_its_own_name() -> None:
    trainer = make_trainer(4)
    sets = {name: [sample(index) for index in range(length)] for name, length in (("small", 3), ("large", 5))}
    trainer.eval_dataset = sets
    told: list[set[str]] = []

    class Listen(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            told.append({name for name in metrics if name.endswith("rows")})

    trainer.add_callback(Listen)
    metrics = trainer.evaluate()
    assert (metrics["eval_small_rows"], metrics["eval_large_rows"]) == (3, 5)
    assert told == [{"eval_small_rows"}, {"eval_large_rows"}]
    assert trainer.evaluate(sets["large"])["eval_rows"] == 5
    assert trainer.evaluate("large", metric_key_prefix="only")["only_rows"] == 5


def test_the_best_model_is_chosen_by_the_metric_of_one_of_several_sets(tmp_path: Path) -> None:
    sets = {name: tiny.vectors(8, seed=seed) for name, seed in (("a", 5), ("b", 6))}
    arguments: dict[str, Any] = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    trainer = make(
        tmp_path, save_strategy="steps", metric_for_best_model="eval_b_loss", load_best_model_at_end=True,
        trainer={"eval_dataset": sets}, **arguments,
    )  # fmt: skip
    trainer.train()
    losses = {entry["step"]: entry["eval_b_loss"] for entry in trainer.state.log_history if "eval_b_loss" in entry}
    assert len(losses) == 3
    assert trainer.state.best_metric == min(losses.values())
    assert trainer.state.best_global_step == min(losses, key=losses.__getitem__)
    with pytest.raises(
        UserError, match=r"^metric_for_best_model: no evaluation gives loss; choose one of a_loss, b_loss$"
    ):
        make(tmp_path, metric_for_best_model="loss", trainer={"eval_dataset": sets}, **arguments).train()


def test_labels_are_what_label_names_says() -> None:
    class Ranked(Nested):
        def forward(self, input_ids: torch.Tensor, goals: torch.Tensor | None = None) -> Any:
            return super().forward(input_ids, goals)

    trainer = make_trainer(4)
    named = [{"input_ids": sample(index)["input_ids"], "labels": sample(index)["labels"]} for index in range(4)]
    args = settings(output_dir=tempfile.gettempdir(), disable_tqdm=True, label_names=["goals"])

    def collate(samples: list[Any]) -> Any:
        batch = pad(samples)
        return {"input_ids": batch["input_ids"], "goals": batch["labels"]}

    torch.manual_seed(0)
    ranked = Trainer(Ranked(), args, data_collator=collate, eval_dataset=named, compute_metrics=accuracy)
    args.remove_unused_columns = False
    assert ranked.evaluate()["eval_right"] == trainer.evaluate()["eval_right"]
    nothing = Trainer(Ranked(), settings(label_names=["labels"]), data_collator=collate, eval_dataset=named)
    assert nothing.predict(named).label_ids is None


def test_the_result_of_a_metric_by_batches_is_asked_for_once_at_the_end() -> None:
    asked: list[bool] = []

    def metric(prediction: Any, compute_result: bool) -> dict[str, Any]:
        asked.append(compute_result)
        return {"batches": len(asked)} if compute_result else {}

    trainer = make_trainer(7, metrics=metric, batch_eval_metrics=True)
    assert trainer.evaluate()["eval_batches"] == 4
    assert asked == [False, False, False, True]


def test_inputs_and_losses_are_there_when_asked_for() -> None:
    seen: list[Any] = []

    def metric(prediction: Any) -> dict[str, Any]:
        seen.append(prediction)
        return {}

    for extras in ([], ["loss"], ["inputs"], ["inputs", "loss"]):
        make_trainer(5, metrics=metric, include_for_metrics=extras).evaluate()
    assert [(one.inputs is not None, one.losses is not None) for one in seen] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    assert seen[3].losses.shape == (5,)
    assert seen[3].inputs.shape == seen[3].label_ids.shape


def test_batches_stay_apart_where_they_are_not_to_be_put_together() -> None:
    output = make_trainer(5, metrics=None, eval_do_concat_batches=False).predict([sample(i) for i in range(5)])
    assert [len(batch) for batch in output.label_ids] == [2, 2, 1]
    assert [batch[0].shape[1] for batch in output.predictions] == [6, 4, 7]


def test_batches_of_an_accelerator_move_when_as_many_are_there_as_asked_for() -> None:
    """A tensor without values stands for one of an accelerator's."""
    collector, moved = Collector(concatenate=False, every=2), []
    collector._flush = lambda: moved.append([collector._held.pop() for _ in collector._held[:]])  # type: ignore[method-assign]
    for _ in range(5):
        collector.add(torch.ones(2, device="meta"))
    assert [len(batches) for batches in moved] == [2, 2]


def test_on_the_host_large_batches_are_never_held() -> None:
    collector = Collector(concatenate=True, every=100, expected=3)
    for _ in range(3):
        collector.add(torch.ones(1, 1 << 18))
        assert not collector._held
    assert collector.take().shape == (3, 1 << 18)


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


def test_an_empty_set_is_told_before_the_first_step_and_gives_the_metrics_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = {"full": tiny.vectors(8), "empty": []}
    arguments: dict[str, Any] = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(tmp_path, trainer={"eval_dataset": sets}, **arguments)
    trainer.train()
    assert "eval_dataset['empty']: it is empty" in caplog.text
    told = [set(entry) for entry in trainer.state.log_history]
    assert sum("eval_full_loss" in names for names in told) == sum("eval_empty_runtime" in names for names in told) == 2
    for wrong, words in (("empty_loss", "it is empty, and metric_for_best_model"), ("loss", "it is empty, and")):
        only = sets if wrong == "empty_loss" else []
        chosen = make(tmp_path, trainer={"eval_dataset": only}, metric_for_best_model=wrong, **arguments)
        with pytest.raises(DataError, match=words):
            chosen.train()
        assert chosen.state.global_step == 0


def test_a_set_that_no_loader_takes_is_told_before_the_first_step(tmp_path: Path) -> None:
    for dataset, more, words in (
        ({"b": object()}, {}, r"^eval_dataset\['b'\]: object is neither a map-style dataset"),
        ([{"a": 1}], {"train_sampling_strategy": "group_by_length"}, "^length_column_name: the .*eval_dataset has no"),
    ):
        more = {"eval_strategy": "epoch", **more}
        trainer = make(tmp_path, trainer={"eval_dataset": dataset}, **more)
        with pytest.raises(DataError, match=words):
            trainer.train()
        assert trainer.state.global_step == 0


def test_a_kept_loader_is_that_of_its_set(tmp_path: Path) -> None:
    arguments = {"dataloader_persistent_workers": True, "dataloader_num_workers": 1}
    sets = {name: tiny.vectors(8, seed=seed) for name, seed in (("a", 5), ("b", 6))}
    trainer = make(tmp_path, trainer={"eval_dataset": sets}, **arguments)
    kept = {name: trainer.get_eval_dataloader(name) for name in sets}
    assert all(trainer.get_eval_dataloader(name) is kept[name] for name in sets)
    assert trainer.get_eval_dataloader(sets["a"]) is trainer.get_eval_dataloader(sets["a"])
    assert trainer.get_eval_dataloader(sets["b"]).dataset is sets["b"]
    trainer.eval_dataset = {**sets, "a": tiny.vectors(4)}
    assert len(trainer.get_eval_dataloader("a").dataset) == 4


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
    collector._flush()
    place = collector._columns[0]._array
    collector.add(torch.ones(4, 3))
    assert np.shares_memory(collector.take(), place)


def test_rows_of_different_dimensions_are_an_error() -> None:
    collector = Collector(concatenate=True, every=None)
    collector.add(torch.ones(2, 3))
    collector.add(torch.ones(2, 3, 1))
    with pytest.raises(UserError, match="batches of 2 and of 3 dimensions cannot be put together"):
        collector.take()
