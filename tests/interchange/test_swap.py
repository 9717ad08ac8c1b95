"""A checkpoint of transformers' Trainer goes on under ours and back, on two ranks: the same losses, norms and rates."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.world import in_world

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make interchange")

from interchange import runs

BOTH, ELSEWHERE = ("theirs, then ours", "ours, then theirs"), "theirs, then ours elsewhere"
SWAPS = [(name, swap) for name in runs.LAYOUTS for swap in BOTH]
SWAPS += [(name, ELSEWHERE) for name, layout in runs.LAYOUTS.items() if layout.elsewhere is not None]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has seen."""
    return in_world(2, "interchange.runs:everything", tmp_path_factory.mktemp("swap"), longest=900)


def seen(rank: dict[str, Any], name: str, act: str) -> dict[str, Any]:
    found = rank[name][act]
    assert not isinstance(found, str), found
    return found


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("name", "swap"), SWAPS)
def test_a_run_goes_on_under_the_other_trainer_as_if_it_had_not_been_swapped(two: Any, name: str, swap: str) -> None:
    before, after = swap.removesuffix(" elsewhere").split(", then ")
    for rank in two:
        swapped, whole = seen(rank, name, swap), seen(rank, name, before)
        for key in ("loss", "grad_norm"):
            assert len(swapped[key]) == runs.STEPS
            assert swapped[key] == pytest.approx(whole[key], rel=1e-6), key
        rates = seen(rank, name, after)["learning_rate"]  # theirs logs the next step's where DeepSpeed has the schedule
        assert swapped["learning_rate"][runs.HALF :] == rates[runs.HALF :]


@pytest.mark.parametrize("name", runs.LAYOUTS)
def test_both_trainers_log_the_same(two: Any, name: str) -> None:
    for rank in two:
        ours, theirs = seen(rank, name, "ours"), seen(rank, name, "theirs")
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6), key
        assert ours["shards"] is theirs["shards"] is name.startswith("FSDP")
