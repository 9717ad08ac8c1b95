"""Features of the Trainer under ZeRO 1, 2 and 3 on two ranks do what they do data parallel on the same ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.world import in_world
from zero import features
from zero.runs import STAGES

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make deepspeed")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has seen."""
    folder: Path = tmp_path_factory.mktemp("features")
    return in_world(2, "zero.features:everything", folder, longest=1200)


def of_ranks(two: list[dict[str, Any]], name: str) -> list[Any]:
    found = [rank[name] for rank in two]
    assert not any(isinstance(each, str) for each in found), found[0]
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("act", features.ALIKE, ids=lambda act: act.__name__)
def test_a_feature_does_what_it_does_data_parallel(two: Any, act: Any, stage: int) -> None:
    for seen, expected in zip(
        of_ranks(two, f"{act.__name__} {stage}"), of_ranks(two, f"{act.__name__} DDP"), strict=True
    ):
        assert seen == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_means_of_each_rank_are_not_those_of_all(two: Any) -> None:
    assert of_ranks(two, "own_means 2")[0] != pytest.approx(of_ranks(two, "common_means 2")[0], rel=1e-5)


def test_noise_reaches_the_embeddings(two: Any) -> None:
    noisy, silent = (of_ranks(two, f"{name}_embeddings 3")[0] for name in ("noisy", "silent"))
    assert noisy != pytest.approx(silent, rel=1e-3)
    assert noisy == pytest.approx(silent, rel=0.2)


def test_a_run_in_bf16_goes_on_in_another_layout(two: Any) -> None:
    """The engine's weights in bf16 are those in float32, rounded; other strategies compute with a rounded copy."""
    for seen in of_ranks(two, "brain_floats_elsewhere"):
        changes = [name for name in seen if " -> " in name]
        assert len(changes) == 21
        for name in changes:
            saved, _, other = name.partition(" -> ")
            near = 1e-3 if saved.isdigit() and other.isdigit() else 5e-3
            assert seen[name] == pytest.approx(seen[saved], rel=near), name


def test_steps_that_overflow_are_skipped_and_the_scale_goes_on_in_another_layout(two: Any) -> None:
    for seen in of_ranks(two, "half_precision"):
        for name, run in seen.items():
            saved = name.partition(" -> ")[0]
            assert run["loss"] == pytest.approx(seen[saved]["loss"], rel=1e-2), name
            if " -> " in name:
                assert run["scale"] == seen[saved]["scale"][4:], name
            elif saved.isdigit():
                skipped = [norm for norm in run["norm"] if norm == float("inf")]
                assert 0 < len(skipped) < 4
                assert run["scale"][-1] == 2 ** (19 - len(skipped))


@pytest.mark.parametrize("format", ["float32", "bf16"])
@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_a_model_made_in_parts_trains_as_one_made_whole(two: Any, model: str, format: str) -> None:
    for seen in of_ranks(two, "made_in_parts"):
        expected_losses, expected = seen[f"{model}, {format}, whole"]
        for name in ("parts", "rest"):
            losses, weights = seen[f"{model}, {format}, {name}"]
            assert losses == expected_losses
            assert [key for key in expected if not torch.equal(weights[key], expected[key])] == []


def test_a_model_without_an_engine_is_evaluated_whole_or_not_at_all(two: Any) -> None:
    for seen in of_ranks(two, "evaluated_before_it_is_trained"):
        assert seen["loss"] == pytest.approx([3.4706], abs=1e-3)
        assert "call train before evaluate and predict" in seen["said"]
