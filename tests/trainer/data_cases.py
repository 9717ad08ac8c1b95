"""What the tests of loading run on several ranks or in data workers: importable by name, as those processes need it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from trainer.settings import settings
from trainwright.data.epochs import batches
from trainwright.data.loaders import eval_loader, train_loader


def as_list(samples: list[Any]) -> list[Any]:
    return samples


def as_tensor(samples: list[Any]) -> torch.Tensor:
    return torch.tensor(samples)


def pad_only_to_four(samples: list[dict[str, Any]]) -> Any:
    return torch.tensor([sample["tokens"] for sample in samples])


class Noisy(Dataset[Any]):
    """Draws from all three generators for every sample, as augmentations do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return (index, random.random(), float(np.random.rand()), torch.rand(()).item())


class Stream(IterableDataset[Any]):
    """Counts up; noisy, where that is asked for. It knows neither its length nor how to go on from a state."""

    def __init__(self, length: int, noisy: bool = False) -> None:
        self.length = length
        self.noisy = noisy

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.length):
            yield (number, torch.rand(()).item()) if self.noisy else number


class StatefulStream(Stream):
    """Goes on from a state, and counts the samples that were read from it."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.next = self.read = 0

    def __iter__(self) -> Iterator[Any]:
        start, self.next = self.next, 0
        for number in range(start, self.length):
            self.read += 1
            self.next = number + 1
            yield number
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def loader_for(dataset: Any, rank: int = 0, world_size: int = 1, batch_size: int = 2, **arguments: Any) -> Any:
    collate = arguments.pop("collate_fn", as_list)
    args = settings(**{"max_steps": 100, **arguments})
    return train_loader(dataset, args=args, batch_size=batch_size, collate_fn=collate, rank=rank, world_size=world_size)


def streams_on_a_rank(cases: list[dict[str, Any]]) -> list[Any]:
    """For each case the batches of this rank, in training and in evaluation, and training resumed after one batch."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return [one_stream(rank, world_size, **case) for case in cases]


def one_stream(rank: int, world_size: int, length: int, stateful: bool = False, **arguments: Any) -> Any:
    def stream() -> Any:
        return StatefulStream(length) if stateful else Stream(length)

    whole = list(batches(loader_for(stream(), rank, world_size, **arguments), epoch=0))
    evaluation = list(
        eval_loader(
            stream(), args=settings(**arguments), batch_size=2, collate_fn=as_list, rank=rank, world_size=world_size
        )
    )
    interrupted = loader_for(stream(), rank, world_size, **arguments)
    iterator = batches(interrupted, epoch=0)
    next(iterator)
    state = interrupted.state_dict()
    resumed = loader_for(stream(), rank, world_size, **arguments)
    assert state is not None
    resumed.load_state_dict(state)
    return whole, list(batches(resumed, epoch=0, skip=1)), evaluation


class Witness(nn.Module):
    """Notes the batches that it is trained on, and those that it is only judged by."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.trained: list[list[int]] = []
        self.judged: list[list[int]] = []

    def forward(self, number: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        (self.trained if self.training else self.judged).append(number.tolist())
        return (self.weight * 0.0 + 1.0).sum(), number


def as_batch(samples: list[Any]) -> dict[str, torch.Tensor]:
    numbers = [sample["number"] if isinstance(sample, dict) else sample for sample in samples]
    return {"number": torch.tensor(numbers), "labels": torch.tensor(numbers)}


def numbers(length: int) -> list[dict[str, int]]:
    return [{"number": number} for number in range(length)]
