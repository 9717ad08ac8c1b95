"""The order of the samples against accelerate's and transformers' own, for every way of dealing them out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from trainer.data_cases import as_list
from trainer.settings import settings
from trainwright.contract import DataError
from trainwright.data.epochs import batches
from trainwright.data.loaders import eval_loader, train_loader
from trainwright.data.rebalance import RebalancedBatches
from trainwright.data.samplers import LengthGrouped, Sequential, ShardedBatches, Sharding, Shuffled


def make(samples: Any, rank: int = 0, world_size: int = 1, batch_size: int = 4, **arguments: Any) -> Any:
    return train_loader(
        samples,
        args=settings(**arguments),
        batch_size=batch_size,
        collate_fn=as_list,
        rank=rank,
        world_size=world_size,
    )


def test_every_share_is_accelerates() -> None:
    table = itertools.product((1, 2, 3, 7, 8, 11, 16), (1, 2, 4, 6), (1, 2, 3), *[(False, True)] * 3)
    for samples, size, ranks, drop_last, even, split in table:
        if split and size % ranks:
            continue
        for rank in range(ranks):
            sampler = BatchSampler(SequentialSampler(range(samples)), size, drop_last)
            theirs = BatchSamplerShard(sampler, ranks, rank, split_batches=split, even_batches=even)
            expected: Any = sampler if ranks == 1 else theirs
            ours = ShardedBatches(
                Sequential(samples), size, drop_last, Sharding(rank, ranks, split_batches=split, even_batches=even)
            )
            case = f"{samples=} {size=} {ranks=} {rank=} {drop_last=} {even=} {split=}"
            assert list(ours) == list(expected), case
            assert len(ours) == len(list(expected)), case


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="random"),
        pytest.param({"data_seed": 7}, id="data_seed"),
        pytest.param({"seed": 5}, id="seed"),
        pytest.param({"train_sampling_strategy": "sequential"}, id="sequential"),
        pytest.param({"accelerator_config": {"use_seedable_sampler": False}}, id="not seedable"),
        pytest.param({"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2}, id="by length"),
        pytest.param({"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}, id="rebalance"),
        pytest.param({"dataloader_drop_last": True}, id="drop_last"),
    ],
)
def test_three_epochs_are_those_of_transformers(tmp_path: Any, arguments: dict[str, Any]) -> None:
    """With the numbers that dropout would see after each epoch, as both draw from the same generator."""
    samples = [{"input_ids": [0] * (1 + index * 7 % 13), "index": index} for index in range(23)]
    theirs = epochs_of_transformers(samples, tmp_path, arguments)
    torch.manual_seed(arguments.get("seed", 42))
    loader = make(samples, **arguments)
    ours = []
    for epoch in range(3):
        order = [[sample["index"] for sample in batch] for batch in batches(loader, epoch=epoch)]
        ours.append((order, torch.rand(2).tolist()))
    assert ours == theirs


def epochs_of_transformers(samples: list[Any], folder: Any, arguments: dict[str, Any]) -> list[Any]:
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, use_cpu=True, remove_unused_columns=False, **arguments
    )
    trainer = transformers.Trainer(torch.nn.Linear(1, 1), args, data_collator=as_list, train_dataset=samples)
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        if hasattr(getattr(loader.batch_sampler, "batch_sampler", None), "set_epoch"):
            loader.batch_sampler.batch_sampler.set_epoch(epoch)
        order = [[sample["index"] for sample in batch] for batch in loader]
        epochs.append((order, torch.rand(2).tolist()))
    return epochs


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_read_what_one_process_reads(ranks: int) -> None:
    samples = list(range(24))
    torch.manual_seed(42)
    alone = [sample for batch in batches(make(samples, batch_size=12 // ranks), epoch=2) for sample in batch]
    shares = [list(batches(make(samples, rank, ranks, 12 // ranks), epoch=2)) for rank in range(ranks)]
    together = [sample for turn in zip(*shares, strict=True) for batch in turn for sample in batch]
    assert together == alone


def test_a_skipped_epoch_goes_on_with_the_same_batches() -> None:
    loader = make(list(range(23)))
    whole = list(batches(loader, epoch=1))
    for skip in range(len(whole) + 1):
        assert list(batches(loader, epoch=1, skip=skip)) == whole[skip:]


def test_opening_within_an_epoch_leaves_every_generator_alone() -> None:
    loader = make(list(range(23)), accelerator_config={"use_seedable_sampler": False})
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    batches(loader, epoch=1, skip=2)
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_keeps_the_order_and_repeats_nothing() -> None:
    args = settings()
    shares = [
        list(eval_loader(list(range(11)), args=args, batch_size=2, collate_fn=as_list, rank=rank, world_size=3))
        for rank in range(3)
    ]
    assert shares == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10]]]


def test_a_length_grouped_order_is_that_of_transformers() -> None:
    lengths = torch.randint(1, 100, (211,), generator=torch.Generator().manual_seed(1)).tolist()
    theirs = get_length_grouped_indices(lengths, 4, generator=torch.Generator().manual_seed(9))
    assert LengthGrouped(lengths, 4, torch.Generator().manual_seed(9)).indices(0) == theirs


def test_a_shuffled_order_is_a_tensor_and_not_a_list() -> None:
    """A list of Python integers takes four times the memory."""
    assert isinstance(Shuffled(10, 0).indices(0), torch.Tensor)


def test_rebalanced_batches_are_those_of_transformers() -> None:
    generator = torch.Generator().manual_seed(2)
    table = itertools.product((12, 31, 64, 5), (1, 2), (1, 3), (False, True))
    for samples, ranks, accumulation, drop_last in table:
        lengths = torch.randint(1, 400, (samples,), generator=generator).tolist()
        for rank in range(ranks):
            theirs = BatchRebalanceSampler(
                lengths, 2 * accumulation * ranks, ranks, accumulation, rank=rank, drop_last=drop_last
            )
            ours = RebalancedBatches(lengths, 2, accumulation, drop_last, Sharding(rank, ranks))
            for epoch in range(2):
                theirs.set_epoch(epoch)
                ours.epoch = epoch
                case = f"{samples=} {ranks=} {rank=} {accumulation=} {drop_last=} {epoch=}"
                assert list(ours) == list(theirs), case
                assert len(ours) == len(theirs), case


def test_a_users_sampler_takes_the_place_of_the_strategy() -> None:
    class Backwards(SequentialSampler):
        def __iter__(self) -> Any:
            return iter(range(len(self) - 1, -1, -1))

    samples = list(range(5))
    loader = train_loader(
        samples, args=settings(), batch_size=2, collate_fn=as_list, rank=0, world_size=1, sampler=Backwards(samples)
    )
    assert list(batches(loader, epoch=0)) == [[4, 3], [2, 1], [0]]


def test_a_users_plain_shuffle_becomes_the_seeded_one() -> None:
    samples = list(range(9))
    torch.manual_seed(42)
    loader = train_loader(
        samples, args=settings(), batch_size=2, collate_fn=as_list, rank=0, world_size=1, sampler=RandomSampler(samples)
    )
    assert list(batches(loader, epoch=1)) == list(batches(make(samples, batch_size=2), epoch=1))


MISTAKES = {
    "empty": ([], {}, "train_dataset: it is empty"),
    "no batch": (
        [1, 2],
        {"dataloader_drop_last": True},
        "train_dataset: its 2 samples do not fill one batch of 4",
    ),
    "no dataset": (object(), {}, "train_dataset: object is neither a map-style dataset"),
    "lengths": (
        [{"a": 1}],
        {"train_sampling_strategy": "group_by_length"},
        "length_column_name: the train_dataset",
    ),
    "split": (
        [1, 2, 3],
        {"accelerator_config": {"split_batches": True}, "world_size": 3},
        "accelerator_config.split_batches: a batch of 4 does not split among 3",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_one_line(case: str) -> None:
    samples, arguments, words = MISTAKES[case]
    with pytest.raises(DataError) as caught:
        make(samples, **arguments)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
