"""The arithmetic of memory: what each way to spread a model leaves on a rank, and the memory of known products."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pool_cases import pool_manifest
from trainwright.arguments.enums import OptimizerNames
from trainwright.footprint import (
    GIB,
    Figures,
    Layout,
    Point,
    Shape,
    estimate,
    gib,
    optimizer_state,
    peaks,
    with_adapters,
)  # fmt: skip
from trainwright_operator.api.spec import parse_pool
from trainwright_operator.core.placement.memory import memory_of

ELEMENTS = 1000
MODEL = Figures(
    elements=ELEMENTS,
    parameters=4000,
    trainable=ELEMENTS,
    gradients=4000,
    factored=80,
    gathered=4000,
    largest_unit=400,
    buffers=16,
    points=(Point(9000, 0), Point(3000, 3000), Point(100, 4000)),
)


def test_one_rank_holds_everything_and_the_peak_is_before_the_gradients_are_there() -> None:
    found = estimate(MODEL, Layout(), "adamw_torch_fused")
    assert (found.parameters, found.gradients, found.optimizer, found.buffers) == (4000, 4000, 8000, 16)
    assert found.gradients + found.activations == 9000


def test_gradients_of_earlier_micro_batches_are_there_in_every_forward_pass() -> None:
    found = estimate(MODEL, Layout(), "adamw_torch_fused", accumulates=True)
    assert found.gradients + found.activations == 9000 + 4000


def test_ddp_copies_the_gradients_into_buckets() -> None:
    assert estimate(MODEL, Layout(2), "sgd").buffers - 16 == 4000


@pytest.mark.parametrize(("layout", "share"), [(Layout(8, 8), 8), (Layout(16, 8), 8), (Layout(8, 8, True), 8)])
def test_a_shard_is_a_part_of_what_is_kept(layout: Layout, share: int) -> None:
    found = estimate(MODEL, layout, "adamw_torch")
    assert (found.parameters, found.gradients, found.optimizer) == (4000 / share, 4000 / share, 8000 / share)


SHARDED = replace(
    MODEL,
    summed=4000,
    points=(Point(900, 0, 800, 2000, 0), Point(500, 1000, 800, 1200, 600), Point(0, 4000, 0, 0, 300)),
)
"""As it is traced for FSDP: at the end of the forward pass, within the backward pass, and at its end."""


@pytest.mark.parametrize(("stays", "gathered"), [(False, 800 + 600), (True, 2000)])
def test_what_is_gathered_at_the_peak_is_in_the_buffers(stays: bool, gathered: int) -> None:
    assert estimate(SHARDED, Layout(8, 8, stays), "adamw_torch").buffers - 16 == gathered


def test_gradients_of_earlier_micro_batches_stay_whole_unless_each_batch_is_summed() -> None:
    whole, summed = (
        estimate(SHARDED, Layout(4, 4), "sgd", accumulates=True, sync_each_batch=each) for each in (False, True)
    )
    assert (whole.gradients, summed.gradients) == (4000, 1000)
    assert whole.total - summed.total == 3000


def test_the_rank_with_the_largest_shards_is_counted() -> None:
    bias, matrix = Shape(1, 1, 4), Shape(10, 100, 4)
    found = estimate(replace(SHARDED, shapes=(bias, matrix)), Layout(4, 4), "adamw_torch")
    assert (found.parameters, found.optimizer) == (4 * (1 + 3 * 100), pytest.approx(8 * 1000 * 301 / 1001))


def test_offloading_leaves_activations_and_what_is_gathered() -> None:
    found = estimate(SHARDED, Layout(8, 8, offload=True), "adamw_torch")
    assert found.parameters + found.gradients + found.optimizer == 0
    assert found.total - 16 == 500 + 800 + 600


@pytest.mark.parametrize(
    ("optim", "settings", "bytes_of_state"),
    [
        ("adamw_torch", "", 8000), ("sgd", "", 0), ("sgd", "momentum=0.9", 4000), ("adafactor", "", 80),
        ("adamw_8bit", "", pytest.approx(2000, rel=0.05)), ("paged_adamw_32bit", "", 8000), ("ademamix", "", 12000),
        ("lion_32bit", "", 4000), ("adamw_torch_4bit", "", pytest.approx(1000, rel=0.1)),
        ("paged_ademamix_32bit", "", 12000), ("rmsprop", "momentum=0.9, centered=true", 12000),
        ("rmsprop", "momentum=0, centered=false", 4000), ("rmsprop_bnb", "", 4000), ("grokadamw", "", 0),
    ],
)  # fmt: skip
def test_the_state_of_an_optimizer(optim: str, settings: str, bytes_of_state: float) -> None:
    assert optimizer_state(MODEL, optim, settings) == bytes_of_state


def test_bitsandbytes_keeps_the_moments_of_embeddings_in_32_bits() -> None:
    found = optimizer_state(replace(MODEL, in_bytes=600), "adamw_8bit")
    assert found == 2 * (600 * (1 + 4 / 256) + 400 * 4)


@pytest.mark.parametrize(
    ("optim", "bytes_of_state"),
    [("adamw_torch_fused", 4000), ("schedule_free_sgd", 2000), ("stable_adamw", 6000), ("lion_32bit", 4000)],
)
def test_torch_keeps_moments_in_the_format_of_the_weights(optim: str, bytes_of_state: float) -> None:
    assert optimizer_state(replace(MODEL, parameters=2000, gradients=2000), optim) == bytes_of_state


def test_a_loop_over_all_tensors_copies_them_while_it_steps() -> None:
    little = replace(MODEL, points=(Point(100, 4000),))
    plain, fused = (estimate(little, Layout(), optim).total for optim in ("adamw_torch", "adamw_torch_fused"))
    assert (fused, plain) == (4000 + 4000 + 8000 + 16 + 100, 4000 + 4000 + 8000 + 16 + 4000)


def test_every_optimizer_has_a_state_that_is_no_more_than_three_copies() -> None:
    assert all(0 <= optimizer_state(MODEL, one.value) <= 12_400 for one in OptimizerNames)


def test_an_optimizer_that_uses_gradients_up_keeps_none() -> None:
    assert estimate(MODEL, Layout(), "lomo").gradients == 0


def test_adapters_train_a_part() -> None:
    found = estimate(with_adapters(MODEL), Layout(), "adamw_torch")
    assert found.parameters == 4000
    assert found.gradients + found.optimizer == 120


def test_only_moments_that_no_other_exceeds_can_be_the_peak() -> None:
    assert peaks([Point(1, 5), Point(9, 0), Point(8, 0), Point(9, 1), Point(1, 4)]) == (Point(9, 1), Point(1, 5))


def test_sizes_are_written_for_people() -> None:
    assert (gib(80 * GIB), gib(840 * 2**20)) == ("80.0 GiB", "840 MiB")


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ({"vendor": "nvidia", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}, 80),
        ({"vendor": "nvidia", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}}, 40),
        ({"vendor": "nvidia", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}}, 48),
        ({"vendor": "nvidia", "nodeSelector": {"nvidia.com/gpu.product": "Tesla-T4"}}, 16),
        ({"vendor": "nvidia", "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h200-141gb"}}, 141),
        ({"vendor": "nvidia", "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}}, 24),
        ({"vendor": "amd", "nodeSelector": {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}}, 192),
        ({"vendor": "nvidia", "resourceName": "nvidia.com/mig-1g.10gb"}, 10),
        ({"vendor": "tpu", "generation": "v6e", "topology": "4x4", "chipsPerHost": 4}, 32),
        ({"vendor": "nvidia", "memoryPerAccelerator": "24Gi"}, 24),
        ({"vendor": "nvidia", "nodeSelector": {"team": "a"}}, None),
        ({"vendor": "cpu"}, None),
    ],
    ids=str,
)
def test_the_memory_of_an_accelerator_is_stated_or_that_of_a_known_product(spec: dict, size: int | None) -> None:
    assert memory_of(parse_pool(pool_manifest("gpus", **spec))) == (size * GIB if size else None)
