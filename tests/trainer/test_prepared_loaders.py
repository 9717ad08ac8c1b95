"""Loaders that a subclass makes and has accelerate prepare: order and shares are those under transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from torch.utils.data import DataLoader, IterableDataset

import trainwright
from trainer.data_cases import Witness, as_batch, numbers
from trainer.world import in_world

CONFIGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a seed for the data": {"data_seed": 7},
    "not seedable": {"accelerator_config": {"use_seedable_sampler": False}},
    "split": {"accelerator_config": {"split_batches": True}},
    "dealt by rank 0": {"accelerator_config": {"dispatch_batches": True}},
    "dealt and split": {"accelerator_config": {"dispatch_batches": True, "split_batches": True}},
    "not filled up": {"accelerator_config": {"even_batches": False}},
    "not blocking": {"accelerator_config": {"non_blocking": True}},
    "accumulated": {"gradient_accumulation_steps": 2},
    "a stream": {"stream": True},
    "a stream read by all": {"stream": True, "accelerator_config": {"dispatch_batches": False}},
}


class Counting(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(numbers(11))

    def __len__(self) -> int:
        return 11


def trained(package: Any, folder: str, name: str) -> Any:
    """The batches that this rank's model saw in two epochs, those it was judged by, and what accelerate was told."""
    arguments = {"num_train_epochs": 2, **CONFIGS[name]}
    length = 12 if name == "not filled up" else 11  # ranks with unlike numbers of batches hang, here as there
    data = Counting() if arguments.pop("stream", False) else numbers(length)

    class Own(package.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            shuffle = not isinstance(data, Counting)
            return self.accelerator.prepare(DataLoader(data, batch_size=2, shuffle=shuffle, collate_fn=as_batch))

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return self.accelerator.prepare(DataLoader(data, batch_size=2, collate_fn=as_batch))

    args = package.TrainingArguments(
        folder, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", per_device_train_batch_size=2,
        remove_unused_columns=False, ddp_find_unused_parameters=False, label_names=["labels"], **arguments,
    )  # fmt: skip
    trainer = Own(Witness(), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.evaluate()
    told = vars(trainer.accelerator.dataloader_config)
    return trainer.model.trained, trainer.model.judged, trainer.state.global_step, told


def side_by_side(folder: str) -> dict[str, Any]:
    return {name: [trained(package, folder, name) for package in (trainwright, transformers)] for name in CONFIGS}


@pytest.mark.parametrize("ranks", [1, 2])
def test_prepared_loaders_deal_the_batches_of_transformers(ranks: int, tmp_path: Path) -> None:
    target = "trainer.test_prepared_loaders:side_by_side"
    results = [side_by_side(str(tmp_path))] if ranks == 1 else in_world(ranks, target, str(tmp_path))
    for rank, cases in enumerate(results):
        for name, (ours, theirs) in cases.items():
            assert ours == theirs, f"{name}, rank {rank} of {ranks}"
