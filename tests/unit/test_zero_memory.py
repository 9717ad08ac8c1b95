"""What of a DeepSpeed configuration decides the memory of a rank, and what is refused because it is not counted."""

from __future__ import annotations

from typing import Any

import pytest

from trainwright.arguments.zero_memory import optimizer_of, zero_of
from trainwright.contract import UserError
from trainwright.footprint import Figures, Point, Zero, estimate_zero

MODEL = Figures(1000, 4000, 1000, 2000, 0, 2000, 200, 0, (Point(9000, 0), Point(100, 2000)))
ZERO = {"stage": 2}


def given(**section: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {**ZERO, **section}}}


@pytest.mark.parametrize(
    ("section", "zero"),
    [
        ({}, Zero(4, 2)),
        ({"stage": "auto"}, Zero(4, 2)),
        ({"reduce_bucket_size": "auto"}, Zero(4, 2, bucket=64 * 64)),
        ({"reduce_bucket_size": 5e6, "overlap_comm": True}, Zero(4, 2, bucket=10_000_000)),
        ({"stage": 3, "overlap_comm": True}, Zero(4, 3)),
        ({"stage": 3, "stage3_max_live_parameters": 5, "stage3_max_reuse_distance": 7}, Zero(4, 3, live=7)),
        ({"stage": 3, "stage3_prefetch_bucket_size": "auto"}, Zero(4, 3, prefetched=int(0.9 * 64 * 64))),
        ({"offload_optimizer": {"device": "cpu", "pin_memory": True}}, Zero(4, 2, offload_optimizer=True)),
        (
            {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
            Zero(4, 3, offload_optimizer=True, offload_parameters=True),
        ),
    ],
    ids=str,
)
def test_a_configuration_is_read_as_deepspeed_reads_it(section: dict[str, Any], zero: Zero) -> None:
    assert zero_of(given(**section), 4, 64) == zero


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (given(zero_hpz_partition_size=2), "zero_optimization.zero_hpz_partition_size"),
        (given(offload_optimizer={"device": "cpu", "ratio": 0.3}), "zero_optimization.offload_optimizer.ratio"),
        (given(contiguous_gradients=False), "contiguous_gradients: false"),
        (given(stage=3, offload_param={"device": "cpu"}), "offload_param without offload_optimizer"),
        ({"deepspeed": {**given()["deepspeed"], "torch_autocast": {"enabled": True}}}, "torch_autocast"),
        ({"deepspeed": {**given()["deepspeed"], "optimizer": {"type": "Lamb"}}}, "optimizer.type Lamb"),
        ({"deepspeed": {**given()["deepspeed"], "communication_data_type": "int8"}}, "communication_data_type int8"),
        ({**given(), "optim": "adafactor"}, "optim adafactor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_counted_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=f"what .*{named} does to memory is not estimated"):
        zero_of(arguments, 4, 64)


def configured(**sections: Any) -> dict[str, Any]:
    return {"deepspeed": {**given()["deepspeed"], **sections}}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (given(), ("adamw_torch_fused", "")),
        ({**given(), "optim": "sgd", "optim_args": "momentum=0.9"}, ("sgd", "momentum=0.9")),
        (configured(optimizer={"type": "AdamW"}), ("adamw_torch_fused", "")),
        (configured(optimizer={"type": "Adam", "params": {"torch_adam": True}}), ("adamw_torch", "")),
        (configured(optimizer={"type": "SGD", "params": {"momentum": 0.9}}), ("sgd", "momentum")),
    ],
    ids=str,
)
def test_the_optimizer_is_that_of_the_configuration_if_it_names_one(arguments: Any, named: tuple[str, str]) -> None:
    assert optimizer_of(arguments) == named


@pytest.mark.parametrize(
    ("name", "bf16", "size"), [("bf16", True, 0), ("fp32", True, 4), ("bfloat16", False, 2), ("fp32", False, 0)]
)
def test_gradients_that_are_sent_in_another_format_are_copied(name: str, bf16: bool, size: int) -> None:
    assert zero_of({**configured(communication_data_type=name), "bf16": bf16}, 4, 64).sent == size


def test_an_optimizer_that_does_not_step_in_place_needs_more() -> None:
    totals = {
        name: estimate_zero(MODEL, Zero(1, 2, bucket=0), name).total
        for name in ("sgd", "adamw_torch_fused", "adamw_torch")
    }
    few = estimate_zero(MODEL, Zero(1, 3, bucket=0, live=0, prefetched=0, stepped=1), "adamw_torch").total
    fused = estimate_zero(MODEL, Zero(1, 3, bucket=0, live=0, prefetched=0), "adamw_torch_fused").total
    assert totals["sgd"] < totals["adamw_torch_fused"] <= totals["adamw_torch"]
    assert few <= fused + 12


def test_each_stage_divides_more() -> None:
    found = [estimate_zero(MODEL, Zero(4, stage, bucket=0), "adamw_torch_fused") for stage in (1, 2, 3)]
    assert [one.parameters for one in found] == [2000, 2000, 500]
    assert {one.gradients for one in found} == {6 * 250}
    assert {one.optimizer for one in found} == {12 * 250}


def test_buckets_are_counted_whole_and_offloading_leaves_them() -> None:
    offloaded = Zero(4, 3, True, True, bucket=10_000)
    found = estimate_zero(MODEL, offloaded, "adamw_torch_fused")
    assert found.parameters + found.gradients + found.optimizer == 0
    assert found.buffers >= 2 * 10_000
    assert found.activations == 9000


def test_the_whole_model_at_the_start_can_be_the_peak() -> None:
    few = Figures(1000, 4000, 1000, 2000, 0, 2000, 20, 0, ())
    assert estimate_zero(few, Zero(1000, 2, bucket=0), "adamw_torch_fused").total == 4000
    assert estimate_zero(few, Zero(1000, 3, bucket=0, live=0, prefetched=0), "adamw_torch_fused").total < 400
