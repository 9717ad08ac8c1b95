"""The rank that the others wait for: found among real ranks of which one is slow, and not where none is."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from trainer.world import in_world
from trainwright.training.own_time import slowest

STEPS, SLEEP = 25, 0.08


class Net(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(4, 2), seconds

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        time.sleep(self.seconds)
        logits = self.layer(x)
        return nn.functional.cross_entropy(logits, labels), logits


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return {"x": torch.ones(4), "labels": torch.tensor(index % 2)}


def train(slow: tuple[str, int]) -> Any:
    """Three trainings: one rank slow in its forward passes, or in its data, or none."""
    from trainwright import Trainer, TrainingArguments
    from trainwright.integrations.clock import of_process

    found = []
    rank = torch.distributed.get_rank()
    for where, which in (("model", 1), ("data", 2), ("", 0)):
        extra = SLEEP if rank == which else 0.0
        args = TrainingArguments(
            output_dir="/tmp", per_device_train_batch_size=1, max_steps=STEPS, logging_steps=STEPS, report_to="none",
            save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        model = Net(0.01 + (extra if where == "model" else 0.0))
        Trainer(model, args, train_dataset=Rows(0.01 + (extra if where == "data" else 0.0))).train()
        found.append(of_process().slowest)
    return found


def test_the_slow_rank_is_named_whether_its_model_or_its_data_is_slow() -> None:
    for by_model, by_data, even in in_world(3, "trainer.test_own_time:train", ("", 0)):
        assert (by_model["rank"], by_model["step"]) == (1, STEPS)
        assert by_model["factor"] > 1.3
        assert by_data["rank"] == 2
        assert even == {} or even["factor"] < by_data["factor"], "a busy machine may slow any rank"


CASES = {
    # name: (own times of the ranks, seconds of a step, the slow rank before) -> (rank, factor)
    "even": (([1.0, 1.1, 0.9, 1.0], 2.0, -1), None),
    "one of four": (([1.0, 1.0, 2.0, 1.0], 2.0, -1), (2, 2.0)),
    "one of two": (([1.0, 2.0], 2.0, -1), (1, 2.0)),
    "just below": (([1.0, 1.29, 1.0], 1.3, -1), None),
    "at the limit": (([1.0, 1.3, 1.0], 1.3, -1), (1, 1.3)),
    "it was slow, and hardly is": (([1.0, 1.2, 1.0], 1.3, 1), (1, 1.2)),
    "another one was slow": (([1.0, 1.2, 1.0], 1.3, 2), None),
    "it was slow, and is no longer": (([1.0, 1.1, 1.0], 1.3, 1), None),
    "much of little": (([0.001, 0.01, 0.001], 1.0, -1), None),
    "of nothing": (([0.0, 0.5, 0.0], 1.0, -1), (1, 1000.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rank_is_slow_by_the_median_of_the_others(name: str) -> None:
    given, expected = CASES[name]
    found = slowest(*given)
    assert (found["rank"], found["factor"]) == expected if expected else found == {}
