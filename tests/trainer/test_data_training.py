"""The settings of the data as a whole run shows them: what the model was trained on, and on after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from torch.utils.data import IterableDataset

from trainer.data_cases import StatefulStream, Witness, as_batch, numbers
from trainer.world import in_world
from trainwright import Trainer, TrainingArguments


class Sized(IterableDataset[Any]):
    """Iterable, with a length, and told the epoch: each begins elsewhere."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter((number + 100 * self.epoch) for number in range(self.length))


def run(folder: Any, dataset: Any, resume: Any = None, **arguments: Any) -> list[list[int]]:
    """The batches of one run."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
    }
    args = TrainingArguments(str(folder), **{**defaults, **arguments})
    trainer = Trainer(Witness(), args, data_collator=as_batch, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model.trained


def streaming(shuffled: bool = False) -> Any:
    made = datasets.Dataset.from_dict({"number": list(range(20))}).to_iterable_dataset(num_shards=2)
    return made.shuffle(seed=3, buffer_size=7) if shuffled else made


def test_an_iterable_set_with_a_length_ends_its_epochs_and_is_told_them(tmp_path: Path) -> None:
    batches = run(tmp_path, Sized(5), max_steps=-1, num_train_epochs=2)
    assert batches == [[0, 1], [2, 3], [4], [100, 101], [102, 103], [104]]


def test_a_stream_of_datasets_draws_a_new_order_in_every_epoch(tmp_path: Path) -> None:
    batches = run(tmp_path, streaming(shuffled=True), max_steps=20)
    first, second = ([number for batch in part for number in batch] for part in (batches[:10], batches[10:]))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


SETS: dict[str, Any] = {
    "with a state": lambda: StatefulStream(9),
    "told the epoch": lambda: Sized(5),
    "of datasets": streaming,
    "of datasets, shuffled": lambda: streaming(shuffled=True),
    "map-style": lambda: numbers(9),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", SETS)
def test_a_run_goes_on_with_the_batch_after_the_last(kind: str, workers: int, tmp_path: Path) -> None:
    """Over the end of an epoch; from every step."""
    make, arguments = SETS[kind], {"dataloader_num_workers": workers}
    whole = run(tmp_path, make(), max_steps=12, save_strategy="steps", save_steps=3, **arguments)
    for step in (3, 6, 9):
        rest = run(tmp_path, make(), f"{tmp_path}/checkpoint-{step}", max_steps=12, **arguments)
        assert rest == whole[step:], f"after step {step}"


def test_a_stream_with_a_state_is_not_read_again(tmp_path: Path) -> None:
    run(tmp_path, StatefulStream(100), save_strategy="steps", save_steps=4)
    stream = StatefulStream(100)
    run(tmp_path, stream, f"{tmp_path}/checkpoint-4")
    assert stream.read == 4


@pytest.mark.parametrize("make", [lambda: numbers(40), lambda: StatefulStream(40)], ids=["map-style", "stream"])
def test_ignore_data_skip_starts_the_epoch_anew(make: Any, tmp_path: Path) -> None:
    whole = run(tmp_path, make(), save_strategy="steps", save_steps=4)
    rest = run(tmp_path, make(), f"{tmp_path}/checkpoint-4", ignore_data_skip=True)
    assert rest == whole[:2]


def wasted(batches: list[list[int]]) -> int:
    """Padding in batches of two, where sample n has n % 6 + 1 tokens."""
    return sum(abs(a % 6 - b % 6) for a, b in batches)


def in_order(batches: list[list[int]]) -> bool:
    return [number for batch in batches for number in batch] == list(range(48))


STRATEGIES: dict[str, Any] = {
    "sequential": in_order,
    "random": lambda batches: not in_order(batches) and wasted(batches) > 30,
    "group_by_length": lambda batches: max(number % 6 for number in batches[0]) == 5 and wasted(batches) < 20,
    "batch_rebalance": lambda batches: not in_order(batches),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_deals_each_sample_once_in_its_own_way(strategy: str, tmp_path: Path) -> None:
    data = [{"number": number, "input_ids": [0] * (1 + number % 6)} for number in range(48)]
    batches = run(tmp_path, data, train_sampling_strategy=strategy, max_steps=24)
    assert sorted(number for batch in batches for number in batch) == list(range(48))
    assert STRATEGIES[strategy](batches)


# -- several ranks

SHARES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dispatched": {"accelerator_config": {"dispatch_batches": True}},
    "split": {"accelerator_config": {"split_batches": True}},
    "dispatched and split": {"accelerator_config": {"dispatch_batches": True, "split_batches": True}},
}


def shares_of_a_rank(folder: str) -> dict[str, list[list[int]]]:
    kinds: dict[str, Any] = {"map": lambda: numbers(24), "stream": lambda: StatefulStream(24)}
    arguments: dict[str, Any] = {"train_sampling_strategy": "sequential", "max_steps": 3}
    arguments["ddp_find_unused_parameters"] = False
    return {
        f"{kind}, {name}": run(folder, make(), **arguments, **share)
        for kind, make in kinds.items()
        for name, share in SHARES.items()
    }


def test_batches_are_dealt_or_split_as_asked(tmp_path: Path) -> None:
    """Without ``split_batches`` a batch of two is each rank's own; with it two samples are dealt to the two ranks."""
    first, second = in_world(2, "trainer.test_data_training:shares_of_a_rank", str(tmp_path))
    for case in first:
        if "split" in case:
            assert (first[case], second[case]) == ([[0], [2], [4]], [[1], [3], [5]]), case
        else:
            assert (first[case], second[case]) == ([[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]), case
