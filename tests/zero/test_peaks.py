"""The estimate of memory under ZeRO against what others wrote down, and against what two ranks take."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.world import in_world
from trainwright.arguments.spread import needed, stated
from trainwright.declarative.footprint import Subject, step_of
from trainwright.footprint import Estimate, Figures, Zero, estimate_zero, gib
from zero import peaks

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make deepspeed")
BILLIONS = 7_000_000_000
IN_SIXTEEN_BITS = Figures(BILLIONS, 4 * BILLIONS, BILLIONS, 2 * BILLIONS, 0, 2 * BILLIONS, 4 * 10**8, 0, ())


def states(zero: Zero) -> float:
    found = estimate_zero(IN_SIXTEEN_BITS, zero, "adamw_torch_fused")
    return found.parameters + found.gradients + found.optimizer


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("nodes", [1, 2])
def test_stage_2_has_the_states_of_deepspeeds_own_estimate(offload: bool, nodes: int) -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    _, theirs = estimate_zero2_model_states_mem_needs(BILLIONS, 8, nodes, cpu_offload=offload)
    assert states(Zero(8 * nodes, 2, offload_optimizer=offload)) == pytest.approx(theirs, abs=1)


# Without offloading an engine holds 2 bytes for each element of a partition more than DeepSpeed's estimate says, as the
# measurements below show.
@pytest.mark.parametrize("offloaded", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("nodes", [1, 2])
def test_stage_3_has_the_states_of_deepspeeds_own_estimate(offloaded: tuple[bool, bool], nodes: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    optimizer, parameters = offloaded
    _, theirs, layer = estimate_zero3_model_states_mem_needs(
        BILLIONS, 10**8, 8, nodes, cpu_offload=optimizer, cpu_offload_params=parameters
    )
    zero = Zero(8 * nodes, 3, optimizer, parameters)
    left_out = 0 if optimizer else 2 * BILLIONS / zero.ranks  # gradients in 16 bits beside those in float32
    assert states(zero) == pytest.approx(theirs - layer + left_out, abs=1)
    assert estimate_zero(IN_SIXTEEN_BITS, zero, "adamw_torch_fused").buffers >= layer


def estimated(subject: Subject, arguments: dict[str, Any]) -> Estimate:
    given = {"per_device_train_batch_size": peaks.ROWS, **arguments}
    way = stated(given, 2, 2, subject.hidden_size)
    return needed(subject.figures(step_of(way, given)), way, given)


@pytest.fixture(scope="module")
def measured() -> list[dict[str, tuple[int, int]]]:
    return in_world(2, "zero.peaks:peaks", peaks.CASES, longest=900)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject({**peaks.MODEL, "tokenizer": "bytes"}, {"source": "x", "blockSize": peaks.TOKENS}, "CausalLM")


@pytest.mark.parametrize("name", peaks.CASES)
def test_no_rank_takes_more_than_the_estimate_nor_much_less(measured: Any, subject: Subject, name: str) -> None:
    told = estimated(subject, peaks.CASES[name])
    start, steps = (max(rank[name][part] for rank in measured) for part in (0, 1))
    print(f"{name}: {gib(told.total)} estimated, {gib(steps)} measured, {gib(start)} until the first step's end")
    assert told.total >= 0.95 * max(start, steps)
    assert told.total <= 1.4 * max(start, steps)
