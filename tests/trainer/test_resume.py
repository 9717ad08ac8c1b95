"""An interrupted run ends bit for bit where an undisturbed one does: from every step, whatever draws random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.resume_job import make_trainer, weights
from trainwright.contract import strict_json

LOGGED = ("loss", "learning_rate", "grad_norm", "step")
RUNS: dict[str, dict[str, Any]] = {
    "augmented data, dropout, batch norm": {},
    "accumulation over an uneven epoch": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
    "data workers": {"dataloader_num_workers": 2, "max_steps": 8},
    "order from the run's generator": {"accelerator_config": {"use_seedable_sampler": False}},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "rebalanced": {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2},
    "fp16 with its scaler": {"fp16": True},
    "a stream": {"stream": True},
    "sgd and a cosine": {"optim": "sgd", "lr_scheduler_type": "cosine"},
    "last batch dropped": {"dataloader_drop_last": True},
    "saved while training goes on": {"async_save": True},
    "the same, accumulated, with workers": {
        "async_save": True,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
        "max_steps": 6,
    },
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_resumed_from_any_checkpoint_ends_in_the_same_bits(run: str, memory: Path) -> None:
    arguments = RUNS[run]
    undisturbed = make_trainer(str(memory / "a"), **arguments)
    undisturbed.train()
    expected, last = weights(undisturbed), undisturbed.state.global_step
    for step in range(1, last):
        resumed = make_trainer(str(memory / "b"), **{**arguments, "save_strategy": "no"})
        resumed.train(resume_from_checkpoint=str(memory / "a" / f"checkpoint-{step}"))
        different = [name for name, tensor in weights(resumed).items() if not torch.equal(tensor, expected[name])]
        assert not different, f"resumed at step {step} of {last}: {different} differ"
        assert history(resumed) == history(undisturbed), f"resumed at step {step}"


def history(trainer: Any) -> list[Any]:
    """What was logged at each step; the last entry is the run's own times.

    A state on disk tells of every number that is not finite by null, so that all of them are the same here.
    """
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [strict_json({key: entry[key] for key in LOGGED}) for entry in entries]
