"""Data workers: a batch is the same at its turn and after a resume, however many workers make it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from trainer.data_cases import Noisy, Stream, as_list, loader_for, pad_only_to_four
from trainwright.contract import DataError
from trainwright.data.epochs import batches


@pytest.mark.parametrize("persistent", [False, True])
def test_noise_of_a_batch_is_its_own(persistent: bool) -> None:
    arguments: Any = {"dataloader_num_workers": 2, "dataloader_persistent_workers": persistent}
    loader = loader_for(Noisy(9), **arguments)
    epochs = [list(batches(loader, epoch=epoch)) for epoch in range(2)]
    other = loader_for(Noisy(9), **{**arguments, "dataloader_num_workers": 1})
    assert list(batches(other, epoch=1, skip=2)) == epochs[1][2:]
    noise = [sample[1:] for epoch in epochs for batch in epoch for sample in batch]
    assert len({value for values in noise for value in values}) == 3 * 2 * 9


def test_noise_differs_between_ranks_and_seeds() -> None:
    first, other_rank, other_seed = (
        {sample[1] for batch in batches(loader_for(Noisy(8), rank, 2, **arguments), epoch=0) for sample in batch}
        for rank, arguments in [
            (0, {"dataloader_num_workers": 1}),
            (1, {"dataloader_num_workers": 1}),
            (0, {"dataloader_num_workers": 1, "seed": 43}),
        ]
    )
    assert not first & other_rank
    assert not first & other_seed


def test_without_workers_the_runs_own_generators_are_drawn_from_batch_by_batch() -> None:
    """Nothing is read ahead: what is drawn between two batches lies between their numbers."""
    torch.manual_seed(0)
    loader = loader_for(Noisy(6), train_sampling_strategy="sequential")
    iterator = batches(loader, epoch=0)
    before = torch.get_rng_state()
    next(iterator)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.rand(()), torch.rand(())
    assert torch.equal(torch.get_rng_state(), after)


def test_a_stream_in_workers_resumes_alike() -> None:
    arguments: Any = {"dataloader_num_workers": 2}
    whole = list(batches(loader_for(Stream(11, noisy=True), **arguments), epoch=0))
    loader = loader_for(Stream(11, noisy=True), **arguments)
    taken = list(itertools.islice(batches(loader, epoch=0), 3))
    resumed = loader_for(Stream(11, noisy=True), **arguments)
    state = loader.state_dict()
    assert state is not None
    resumed.load_state_dict(state)
    assert taken + list(batches(resumed, epoch=0, skip=3)) == whole


def test_the_epoch_reaches_the_dataset_in_a_persistent_worker() -> None:
    loader = loader_for(TellsEpoch(), dataloader_num_workers=1, dataloader_persistent_workers=True)
    assert [set(itertools.chain(*batches(loader, epoch=epoch))) for epoch in (0, 1, 5)] == [{0}, {1}, {5}]


class TellsEpoch(Noisy):
    epoch = -1

    def __init__(self) -> None:
        super().__init__(4)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Any:
        return self.epoch


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_collator_names_the_samples_keys_in_one_line(workers: int) -> None:
    ragged = [{"tokens": [0] * (index + 1), "label": 0} for index in range(4)]
    loader = loader_for(ragged, dataloader_num_workers=workers, collate_fn=pad_only_to_four)
    with pytest.raises(DataError) as caught:
        list(batches(loader, epoch=0))
    assert str(caught.value).startswith(
        "data_collator: pad_only_to_four failed on 2 samples of the keys label, tokens: ValueError: "
    )
    assert "\n" not in str(caught.value)


def test_settings_reach_torchs_loader() -> None:
    loader = loader_for(
        Noisy(4),
        dataloader_num_workers=1,
        dataloader_prefetch_factor=3,
        dataloader_persistent_workers=True,
        dataloader_multiprocessing_context="spawn",
        dataloader_in_order=False,
        dataloader_pin_memory=True,
    )
    assert loader.num_workers == 1
    assert loader.prefetch_factor == 3
    assert loader.persistent_workers
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert not loader.in_order
    assert loader.pin_memory == torch.accelerator.is_available()


def test_spawned_workers_can_be_sent_everything() -> None:
    arguments: Any = {"dataloader_num_workers": 1, "train_sampling_strategy": "sequential"}
    spawned = loader_for(Noisy(4), dataloader_multiprocessing_context="spawn", collate_fn=as_list, **arguments)
    forked = loader_for(Noisy(4), **arguments)
    assert list(batches(spawned, epoch=0)) == list(batches(forked, epoch=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loaders_dataset_is_the_users_own(workers: int) -> None:
    for dataset in (Noisy(7), Stream(7)):
        assert loader_for(dataset, dataloader_num_workers=workers).dataset is dataset
    shared = loader_for(Stream(7), 1, 2, dataloader_num_workers=workers, accelerator_config={"dispatch_batches": False})
    assert shared.dataset.length == 7
    assert not hasattr(shared.dataset, "width")


@pytest.mark.parametrize("case", ["map-style", "map-style, dealt", "a stream"])
def test_a_loader_knows_what_all_ranks_read_together(case: str) -> None:
    """As a loader that accelerate prepared."""
    dataset = Stream(7) if case == "a stream" else Noisy(7)
    config = {"dispatch_batches": True} if "dealt" in case else {}
    loaders = [loader_for(dataset, rank, 2, batch_size=3, accelerator_config=config) for rank in range(2)]
    assert {loader.total_batch_size for loader in loaders} == {6}
    if case != "a stream":
        assert {loader.total_dataset_length for loader in loaders} == {7}
