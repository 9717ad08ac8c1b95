"""Iterable datasets: their end, their state, and how several ranks share one."""

from __future__ import annotations

import itertools
from typing import Any

import datasets
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard

from trainer.data_cases import StatefulStream, Stream, as_list, loader_for
from trainer.world import in_world
from trainwright.contract import DataError
from trainwright.data.epochs import batches
from trainwright.data.samplers import Sharding
from trainwright.data.streams import StreamShard, has_state


def test_a_stream_without_length_needs_max_steps() -> None:
    with pytest.raises(DataError, match="max_steps: the train_dataset has no length"):
        loader_for(Stream(3), max_steps=-1)


def test_an_empty_stream_is_an_error_and_an_exhausted_one_is_not() -> None:
    with pytest.raises(DataError, match="train_dataset: it is empty"):
        list(batches(loader_for(Stream(0)), epoch=0))
    assert list(batches(loader_for(Stream(0)), epoch=1)) == []


def test_a_stateful_stream_goes_on_without_reading_what_was_read() -> None:
    loader = loader_for(StatefulStream(9))
    taken = list(itertools.islice(batches(loader, epoch=0), 2))
    state = loader.state_dict()
    resumed = loader_for(StatefulStream(9))
    assert state is not None
    resumed.load_state_dict(state)
    rest = list(batches(resumed, epoch=0, skip=2))
    assert (taken, rest) == ([[0, 1], [2, 3]], [[4, 5], [6, 7], [8]])
    assert resumed.dataset.read == 5


def test_a_stream_that_forgets_is_read_again() -> None:
    assert list(batches(loader_for(Stream(7)), epoch=0, skip=2)) == [[4, 5], [6]]


@pytest.mark.parametrize("shuffled", [False, True])
def test_streams_of_datasets_resume_exactly(shuffled: bool) -> None:
    """Their own state loses a shuffle buffer, so a stream that shuffles is read again."""

    def stream() -> Any:
        made = datasets.Dataset.from_dict({"x": list(range(20))}).to_iterable_dataset(num_shards=2)
        return made.shuffle(seed=3, buffer_size=5) if shuffled else made

    whole = list(batches(loader_for(stream()), epoch=1))
    loader = loader_for(stream())
    taken = list(itertools.islice(batches(loader, epoch=1), 4))
    state = loader.state_dict()
    assert state is not None
    resumed = loader_for(stream())
    resumed.load_state_dict(state)
    assert taken + list(batches(resumed, epoch=1, skip=4)) == whole
    assert has_state(stream()) is not shuffled


def test_every_share_of_a_stream_is_accelerates() -> None:
    table = itertools.product((1, 5, 8, 11, 12), (1, 2, 3), (1, 2, 3), (False, True))
    for length, size, ranks, drop_last in table:
        for rank in range(ranks):
            theirs = list(IterableDatasetShard(Stream(length), size, drop_last, ranks, rank))
            ours = list(StreamShard(Stream(length), size, drop_last, Sharding(rank, ranks)))
            assert ours == theirs, f"{length=} {size=} {ranks=} {rank=} {drop_last=}"


CASES: dict[str, dict[str, Any]] = {
    "dealt": {"length": 11},
    "dealt, even": {"length": 12},
    "dealt, fewer than ranks": {"length": 2},
    "dealt, stateful": {"length": 11, "stateful": True},
    "dealt, dropped": {"length": 11, "dataloader_drop_last": True},
    "dealt, workers": {"length": 11, "dataloader_num_workers": 1},
    "read by all": {"length": 11, "accelerator_config": {"dispatch_batches": False}},
    "read by all, stateful": {"length": 11, "stateful": True, "accelerator_config": {"dispatch_batches": False}},
}


def test_three_ranks_share_a_stream() -> None:
    results = in_world(3, "trainer.data_cases:streams_on_a_rank", list(CASES.values()))
    for case, by_rank in zip(CASES, zip(*results, strict=True), strict=True):
        whole, resumed, evaluation = zip(*by_rank, strict=True)
        assert len({len(rank) for rank in whole}) == 1, f"{case}: ranks have different numbers of batches"
        read = {number for rank in whole for batch in rank for number in batch}
        length = CASES[case]["length"]
        assert read == set(range(6 if "dropped" in case else length)), case
        assert [rank[1:] for rank in whole] == list(resumed), case
        judged = [number for rank in evaluation for batch in rank if batch for number in batch]
        assert sorted(judged) == list(range(length)), case


def test_what_is_dealt_is_what_accelerate_deals() -> None:
    """Of eleven samples to three ranks, two at a time: the last round is cut evenly, and filled from the first."""
    results = in_world(3, "trainer.data_cases:streams_on_a_rank", [CASES["dealt"]])
    assert [result[0][0] for result in results] == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 0]]]


def test_a_stream_is_not_asked_for_more_than_is_wanted() -> None:
    loader = loader_for(StatefulStream(9))
    iterator = batches(loader, epoch=0)
    next(iterator)
    assert loader.dataset.read == 2


def test_the_generator_of_a_stream_is_seeded_by_the_epoch() -> None:
    class Shuffled(Stream):
        def __init__(self) -> None:
            super().__init__(8)
            self.generator = torch.Generator()

        def __iter__(self) -> Any:
            return iter(torch.randperm(8, generator=self.generator).tolist())

    shard = StreamShard(Shuffled(), 2, False, Sharding(0, 2))
    shard.set_epoch(3)
    assert list(shard) == list(shard)
    assert as_list([1]) == [1]
