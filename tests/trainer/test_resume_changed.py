"""A run that goes on with other arguments: sample by sample where it had stopped, and told what is not as it was."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from trainer.data_cases import StatefulStream, Stream, Witness, as_batch, numbers
from trainer.world import in_world
from trainwright import Trainer, TrainingArguments
from trainwright.contract import UserError

LENGTH = 23


def run(folder: Any, dataset: Any, resume: Any = None, kind: Any = TrainingArguments, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2, "num_train_epochs": 3, "save_strategy": "no", "use_cpu": True,
        "disable_tqdm": True, "report_to": "none", "remove_unused_columns": False, "logging_steps": 1,
        "ddp_find_unused_parameters": False,
    }  # fmt: skip
    args = kind(str(folder), **{**defaults, **arguments})
    trainer = Trainer(Witness(), args, data_collator=as_batch, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def flat(trainer: Trainer) -> list[int]:
    return [number for batch in trainer.model.trained for number in batch]


def with_lengths() -> list[dict[str, Any]]:
    return [{"number": number, "input_ids": [0] * (1 + number * 5 % 7)} for number in range(LENGTH)]


ORDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "shuffled": (lambda: numbers(LENGTH), {}),
    "from the run's generator": (
        lambda: numbers(LENGTH), {"accelerator_config": {"use_seedable_sampler": False}},
    ),
    "in data workers": (lambda: numbers(LENGTH), {"dataloader_num_workers": 1}),
    "a stream": (lambda: Stream(LENGTH), {"max_steps": 36}),
    "a stream with a state": (lambda: StatefulStream(LENGTH), {"max_steps": 36}),
}  # fmt: skip
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "larger batches": ({}, {"per_device_train_batch_size": 5}),
    "smaller batches": ({"per_device_train_batch_size": 5}, {"per_device_train_batch_size": 3}),
    "accumulated": ({}, {"gradient_accumulation_steps": 3}),
    "no more accumulated": ({"gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": 1}),
    "the same step otherwise": (
        {"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    ),
}  # fmt: skip


EVERYWHERE = ("larger batches", "accumulated")


@pytest.mark.parametrize(
    ("order", "change"), [(o, c) for o in ORDERS for c in CHANGES if o == "shuffled" or c in EVERYWHERE]
)
def test_every_sample_is_read_once_though_the_batches_change(order: str, change: str, tmp_path: Path) -> None:
    """The order of the whole run is one sequence; the resumed run takes up where the first one had put it down."""
    make, common = ORDERS[order]
    before, after = CHANGES[change]
    first = run(tmp_path, make(), save_strategy="steps", save_steps=1, **common, **before)
    sequence, last = flat(first), first.state.global_step
    for step in (2, last // 2 + 1):
        read = _read_until(first, step, before.get("gradient_accumulation_steps", 1))
        resumed = run(tmp_path / "b", make(), f"{tmp_path}/checkpoint-{step}", **common, **after)
        rest = flat(resumed)
        common_part = min(len(rest), len(sequence) - read)
        assert rest[:common_part] == sequence[read : read + common_part], f"after step {step} of {last}"
        if "max_steps" not in common:
            assert len(rest) == len(sequence) - read
            assert resumed.state.epoch == 3.0
            assert resumed.state.global_step == resumed.state.max_steps


def test_arguments_of_transformers_are_read_as_ours(tmp_path: Path) -> None:
    """As under the overlay, where a script's own stay; and those that were written before with a part as its words."""
    arguments = {"kind": transformers.TrainingArguments, "num_train_epochs": 1}
    first = run(tmp_path, numbers(LENGTH), save_strategy="steps", save_steps=2, **arguments)
    for older in (False, True):
        if older:
            written = tmp_path / "checkpoint-2" / "training_args.json"
            words = json.loads(written.read_text()) | {"accelerator_config": "AcceleratorConfig(split_batches=False)"}
            written.write_text(json.dumps(words))
        rest = run(tmp_path / "b", numbers(LENGTH), f"{tmp_path}/checkpoint-2", **arguments)
        assert flat(rest) == flat(first)[4:]
        rest = run(
            tmp_path / "b", numbers(LENGTH), f"{tmp_path}/checkpoint-2", per_device_train_batch_size=3, **arguments
        )
        assert flat(rest) == flat(first)[4:]


def _read_until(trainer: Trainer, step: int, accumulated: int) -> int:
    """Samples that the first steps of a run took; an epoch's last step takes the batches that are left."""
    batches = trainer.model.trained
    size = len(batches[0])
    epoch = -(-LENGTH // size)
    epochs, steps = divmod(step, -(-epoch // accumulated))
    return sum(len(batch) for batch in batches[: epochs * epoch + min(epoch, steps * accumulated)])


GROUPED: dict[str, dict[str, Any]] = {
    "by length": {"train_sampling_strategy": "group_by_length"},
    "rebalanced": {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("strategy", GROUPED)
def test_an_order_that_depends_on_the_batches_is_finished_as_it_was_begun(strategy: str, tmp_path: Path) -> None:
    common = {**GROUPED[strategy], "num_train_epochs": 1}
    first = run(tmp_path, with_lengths(), save_strategy="steps", save_steps=2, **common)
    read = 2 * 2 * common.get("gradient_accumulation_steps", 1)
    for size in (1, 3, 5):
        arguments = {**common, "per_device_train_batch_size": size}
        rest = flat(run(tmp_path / "b", with_lengths(), f"{tmp_path}/checkpoint-2", **arguments))
        expected = set(flat(first)[read:])
        assert expected <= set(rest)
        assert len(rest) < len(expected) + common.get("gradient_accumulation_steps", 1)  # what fills up the last step


def test_the_batch_size_can_change_again_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The second run begins within a batch, and is interrupted itself."""
    sequence = flat(run(tmp_path / "whole", numbers(LENGTH)))
    seen: list[int] = []
    for part, size in enumerate((2, 5, 3, 4)):
        resume = f"{tmp_path}/{part - 1}/checkpoint-{3 * part}" if part else None
        saving = {"save_strategy": "steps", "save_steps": 3 * (part + 1)}
        trainer = run(tmp_path / str(part), numbers(LENGTH), resume, per_device_train_batch_size=size, **saving)
        seen += [number for batch in trainer.model.trained[: None if part == 3 else 3] for number in batch]
    assert seen == sequence


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "shuffled": (lambda: numbers(24), {}),
    "dealt by rank 0": (lambda: numbers(24), {"accelerator_config": {"dispatch_batches": True}}),
    "a stream dealt": (lambda: Stream(24), {"max_steps": 12}),
    "a stream with a state dealt": (lambda: StatefulStream(24), {"max_steps": 12}),
    "a stream read by all": (lambda: Stream(24), {"max_steps": 12, "accelerator_config": {"dispatch_batches": False}}),
}


def runs_of_a_rank(folder: str) -> dict[str, Any]:
    """On two ranks: a run of each kind, and one that goes on from what one rank wrote."""
    results = {}
    for kind, (make, common) in KINDS.items():
        whole = run(f"{folder}/two/{kind}", make(), save_strategy="steps", save_steps=2, **common)
        resumed = run(f"{folder}/b/{kind}", make(), f"{folder}/one/{kind}/checkpoint-3", **common)
        results[kind] = whole.model.trained, resumed.model.trained
    return results


def in_turns(shares: list[list[list[int]]]) -> list[int]:
    return [number for turn in zip(*shares, strict=True) for batch in turn for number in batch]


@pytest.mark.filterwarnings("ignore:.*draws new random numbers")
def test_every_sample_is_read_once_though_the_ranks_change(tmp_path: Path) -> None:
    """Two ranks go on after three batches of one, in the middle of a round; and one after two rounds of two."""
    alone = {
        kind: flat(run(tmp_path / "one" / kind, make(), save_strategy="steps", save_steps=3, **common))
        for kind, (make, common) in KINDS.items()
    }
    first, second = in_world(2, "trainer.test_resume_changed:runs_of_a_rank", str(tmp_path))
    for kind, (make, common) in KINDS.items():
        whole, rest = (in_turns([first[kind][part], second[kind][part]]) for part in (0, 1))
        length = min(18, len(alone[kind]) - 6)
        assert rest[:length] == alone[kind][6 : 6 + length], f"{kind}, one rank and then two"
        resumed = flat(run(tmp_path / "c", make(), f"{tmp_path}/two/{kind}/checkpoint-2", **common))
        length = min(16, len(resumed))
        assert resumed[:length] == whole[8 : 8 + length], f"{kind}, two ranks and then one"


# -- what is told


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("written")
    run(folder, numbers(12), save_strategy="steps", save_steps=2, max_steps=4)
    return folder


def told(caplog: pytest.LogCaptureFixture, written: Path, folder: Path, **arguments: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trainwright"):
        data = arguments.pop("dataset", numbers(12))
        run(folder, data, str(written / "checkpoint-2"), **{"max_steps": 4, **arguments})
    return [record.getMessage().partition(": ")[2] for record in caplog.records]


DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "batches": ({"per_device_train_batch_size": 3}, "per_device_train_batch_size 2 -> 3"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1 -> 2"),
    "saves": ({"save_steps": 3}, "save_steps 2 -> 3"),
    "logs": ({"logging_steps": 5}, "logging_steps 1 -> 5"),
    "evaluations": ({"per_device_eval_batch_size": 4}, "per_device_eval_batch_size 8 -> 4"),
    "length": ({"max_steps": 5}, "max_steps 4 -> 5"),
    "epochs": ({"max_steps": -1, "num_train_epochs": 2.0}, "max_steps 4 -> -1, num_train_epochs 3 -> 2.0"),
    "schedule": ({"lr_scheduler_type": "cosine", "warmup_steps": 2}, "lr_scheduler_type 'linear' -> 'cosine', wa"),
    "seeds": ({"seed": 1, "data_seed": 2}, "data_seed None -> 2, seed 42 -> 1"),
    "data": ({"dataset": numbers(10)}, "train_dataset 12 samples -> 10 samples"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_is_not_as_it_was_is_told_once(
    name: str, written: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments, words = DIFFERENCES[name]
    arguments = {"save_strategy": "steps", "save_steps": 2, **arguments}
    said = told(caplog, written, tmp_path, **arguments)
    assert said == [said[0]]
    start = "this run goes on with other arguments than those it was written with: "
    assert said[0].startswith(start)
    assert words in said[0]
    changed = len(arguments) - 1 - ("save_steps" in arguments and arguments["save_steps"] == 2)
    assert said[0].count("->") == changed


def test_nothing_is_told_of_what_does_not_matter(
    written: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 2, "run_name": "again", "log_level": "warning"}
    assert told(caplog, written, tmp_path, **arguments) == []


def test_the_learning_rate_is_that_of_the_optimizer_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(tmp_path / "a", numbers(12), save_strategy="steps", save_steps=2, max_steps=4, learning_rate=0.5)
    rates = [entry["learning_rate"] for entry in first.state.log_history if "learning_rate" in entry]
    with caplog.at_level(logging.WARNING, "trainwright"):
        resumed = run(
            tmp_path / "b", numbers(12), f"{tmp_path}/a/checkpoint-2", save_strategy="steps", save_steps=2,
            max_steps=4, learning_rate=0.125, weight_decay=0.25,
        )  # fmt: skip
    assert "its optimizer goes on as it was saved: learning_rate 0.5, not 0.125, weight_decay 0.0, not 0.25" in (
        caplog.text
    )
    assert [e["learning_rate"] for e in resumed.state.log_history if "learning_rate" in e] == rates
    assert {group["weight_decay"] for group in resumed.optimizer.param_groups} == {0.0}


def test_a_checkpoint_of_transformers_tells_what_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import transformers

    arguments: dict[str, Any] = {"use_cpu": True, "report_to": "none", "max_steps": 4, "save_steps": 2}
    args = transformers.TrainingArguments(
        str(tmp_path / "a"), per_device_train_batch_size=4, remove_unused_columns=False, disable_tqdm=True, **arguments
    )
    theirs = transformers.Trainer(Witness(), args, data_collator=as_batch, train_dataset=numbers(LENGTH))
    theirs.train()
    with caplog.at_level(logging.WARNING, "trainwright"):
        checkpoint = f"{tmp_path}/a/checkpoint-2"
        ours = run(tmp_path / "b", numbers(LENGTH), checkpoint, max_steps=4, per_device_train_batch_size=3)
    assert "logging_steps 500 -> 1" in caplog.text
    assert "per_device_train_batch_size 4 -> 3" in caplog.text
    assert "num_train_epochs" not in caplog.text  # theirs counts them from max_steps
    assert flat(ours) == [number for batch in theirs.model.trained for number in batch][8:14]


# -- files that are not as they were saved


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(written, tmp_path / "a")
    return tmp_path / "a" / "checkpoint-2"


PARTS = {
    "optimizer.pt": "the optimizer",
    "scheduler.pt": "the schedule",
    "rng_state.pth": "the random generators",
    "trainer_state.json": "the count of steps",
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_gone_starts_afresh_and_a_warning_says_so(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / name).unlink()
    with pytest.warns(UserWarning, match=f"these start afresh: {PARTS[name]}$"):
        resumed = run(tmp_path / "b", numbers(12), str(checkpoint), max_steps=4)
    assert len(resumed.model.trained) == (4 if name == "trainer_state.json" else 2)


def test_a_checkpoint_that_is_found_must_be_whole(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint.parent / "checkpoint-4" / "scheduler.pt").write_bytes(b"rewritten")
    with pytest.warns(UserWarning, match="is skipped"), pytest.raises(UserError, match="train from the start"):
        run(checkpoint.parent, numbers(12), True, max_steps=4)


def test_a_state_that_was_edited_is_taken_as_it_stands(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "best_metric": 0.25}))
    with caplog.at_level(logging.WARNING, "trainwright"):
        resumed = run(tmp_path / "b", numbers(12), str(checkpoint), max_steps=4)
    assert resumed.state.best_metric == 0.25
    assert "trainer_state.json changed since it was saved, and is taken as it stands" in caplog.text


def test_the_refusal_of_a_changed_file_says_how_to_accept_it(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint / "optimizer.pt")
    state["param_groups"][0]["lr"] = 0.75
    torch.save(state, checkpoint / "optimizer.pt")
    manifest = checkpoint / "trainwright_manifest.json"
    with pytest.raises(UserError) as error:
        run(tmp_path / "b", numbers(12), str(checkpoint), max_steps=4)
    assert str(error.value).startswith(f"resume_from_checkpoint: {checkpoint} cannot be used: optimizer.pt is not as")
    assert str(error.value).endswith(f"or delete {manifest} to use its files as they are")
    manifest.unlink()
    assert len(run(tmp_path / "b", numbers(12), str(checkpoint), max_steps=4).model.trained) == 2
