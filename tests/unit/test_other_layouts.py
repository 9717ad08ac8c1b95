"""What a run reads differently from a checkpoint of DeepSpeed's engine, or the engine from one of another layout."""

from __future__ import annotations

from typing import Any

from trainwright.checkpoint.scales import for_engine, for_torch
from trainwright.checkpoint.schedule import fitted

FRESH = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}


def schedule(*rates: float) -> dict[str, Any]:
    return {"base_lrs": list(rates), "_last_lr": list(rates), "last_epoch": 3, "lr_lambdas": [None] * len(rates)}


def test_a_schedule_keeps_its_own_value_for_a_group_that_the_engine_left_out() -> None:
    assert fitted(schedule(0.5), [0], schedule(0.1, 0.2), [1]) == {**schedule(0.1, 0.5)}
    assert fitted(schedule(0.5), [0], schedule(0.1, 0.2), [0]) == {**schedule(0.5, 0.2)}


def test_a_schedule_of_the_engine_has_no_value_for_an_empty_group() -> None:
    assert fitted(schedule(0.1, 0.5), [1], schedule(0.3), [0]) == schedule(0.5)


def test_a_schedule_of_other_groups_is_left_to_torch() -> None:
    assert fitted(schedule(0.1, 0.5), [0, 1], schedule(0.3), [0]) == schedule(0.1, 0.5)


def test_the_scaler_counts_the_steps_since_the_last_overflow() -> None:
    state = for_torch({"cur_iter": 12, "last_overflow_iter": 4, "cur_scale": 512}, FRESH)
    assert (state["scale"], state["_growth_tracker"], state["growth_interval"]) == (512.0, 7, 2000)
    assert for_engine(state, 12) == {"cur_iter": 12, "last_overflow_iter": 4, "cur_scale": 512.0}


def test_a_scaler_starts_anew_after_a_run_without_one() -> None:
    assert for_torch({}, FRESH) == FRESH
    assert for_engine({}, 12) == {}
