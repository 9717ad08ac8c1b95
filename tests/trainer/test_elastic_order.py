"""An elastic job over 4, 2 and 3 nodes: each optimizer step takes the samples that it would have taken on all nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders import make_job
from trainer.data_cases import numbers
from trainer.test_resume_changed import in_turns, run
from trainer.world import in_world
from trainwright_operator.core import elastic

LENGTH, STEPS = 96, 8
"""Two epochs of four steps of 24 samples."""


def part(argument: tuple[str, str | None, dict[str, Any]]) -> list[list[int]]:
    """On one of the ranks: train from the checkpoint to the end, and return the batches in order."""
    folder, resume, arguments = argument
    common = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "logging_strategy": "no"}
    trainer = run(folder, numbers(LENGTH), resume, **common, **arguments)
    assert trainer.state.global_step == STEPS
    return trainer.model.trained


@pytest.mark.filterwarnings("ignore:.*draws new random numbers")
def test_the_samples_of_each_step_stay_though_the_nodes_change(tmp_path: Path) -> None:
    made = make_job().nodes(4).with_("spec.accelerator.minNodes", 2)
    job = made.training(perDeviceTrainBatchSize=2, gradientAccumulationSteps=3).build()
    assert elastic.sizes(job) == (4, 3, 2)
    resume, parts = None, []
    for nodes, saved in ((4, 2), (2, 4), (3, STEPS)):
        arguments = elastic.sized(job, nodes).spec.training_arguments
        sizes = {name: arguments[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
        folder = f"{tmp_path}/{nodes}"
        parts.append(in_turns(in_world(nodes, "trainer.test_elastic_order:part", (folder, resume, sizes))))
        resume = f"{folder}/checkpoint-{saved}"
    whole, on_two, on_three = parts
    assert len(whole) == 2 * LENGTH
    assert whole[:48] + on_two[:48] + on_three == whole
