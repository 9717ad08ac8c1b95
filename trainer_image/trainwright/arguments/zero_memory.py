"""What of a DeepSpeed configuration decides the memory of a rank; what would change it unseen is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright.arguments import deepspeed
from trainwright.arguments.errors import Mistake
from trainwright.contract import UserError
from trainwright.footprint import Zero

_OPTIMIZERS = ("adamw_torch_fused", "sgd")
"""The others make temporary tensors of the size of a partition while they step, which are not counted."""
_SECTIONS: dict[str, frozenset[str]] = {
    "zero_optimization": frozenset({
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "offload_optimizer", "offload_param",
        "overlap_comm", "reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "stage", "sub_group_size",
        "stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
    }),
    "zero_optimization.offload_optimizer": frozenset({"device", "pin_memory"}),
    "zero_optimization.offload_param": frozenset({"device", "pin_memory"}),
    "bf16": frozenset({"enabled"}),
    "fp16": frozenset({
        "auto_cast", "consecutive_hysteresis", "enabled", "hysteresis", "initial_scale_power", "loss_scale",
        "loss_scale_window", "min_loss_scale",
    }),
}  # fmt: skip
"""The keys of each section whose effect on memory is counted, or that have none."""
_UNCOUNTED = ("communication_data_type", "compile", "data_types", "optimizer", "sparse_gradients", "torch_autocast")
"""Sections and values whose effect is not."""


def zero_of(given: Mapping[str, Any], ranks: int, hidden_size: int | None) -> Zero:
    """How ZeRO spreads a model over ``ranks``.

    Args:
        given: The arguments of a job; ``deepspeed`` is a mapping or the path of a file.
        hidden_size: The width of the model, for sizes that are ``"auto"``.

    Raises:
        UserError: a key has an effect on memory that is not counted here; names it.
    """
    try:
        config = deepspeed.check(given["deepspeed"])
        config = deepspeed.finished(config, hidden_size, max_steps=1, warmup_steps=1)
    except Mistake as mistake:
        raise UserError(f"deepspeed: {mistake}") from None
    _check(config, str(given.get("optim", "adamw_torch_fused")))
    section = config["zero_optimization"]
    stage = deepspeed.stage_of(config)

    def size(name: str, default: float) -> int:
        return int(float(section.get(name, default)))

    return Zero(
        ranks,
        stage,
        offload_optimizer=deepspeed.offloads(config, "optimizer"),
        offload_parameters=stage == 3 and deepspeed.offloads(config, "param"),
        bucket=size("reduce_bucket_size", 5e8) * (2 if stage < 3 and section.get("overlap_comm") is True else 1),
        live=max(size("stage3_max_live_parameters", 1e9), size("stage3_max_reuse_distance", 1e9)),
        prefetched=size("stage3_prefetch_bucket_size", 5e7),
        persistent=size("stage3_param_persistence_threshold", 1e5),
    )


def _check(config: Mapping[str, Any], optim: str) -> None:
    for path in _UNCOUNTED:
        if config.get(path):
            raise _not_counted(path)
    for path, known in _SECTIONS.items():
        section = deepspeed.get(config, path)
        if isinstance(section, Mapping) and (others := sorted(set(section) - known)):
            raise _not_counted(f"{path}.{others[0]}")
    if deepspeed.get(config, "zero_optimization.contiguous_gradients") is False:
        raise _not_counted("zero_optimization.contiguous_gradients: false")
    if deepspeed.offloads(config, "param") and not deepspeed.offloads(config, "optimizer"):
        raise _not_counted("zero_optimization.offload_param without offload_optimizer")
    if optim not in _OPTIMIZERS:
        raise _not_counted(f"optim {optim}")


def _not_counted(path: str) -> UserError:
    return UserError(f"deepspeed: what {path} does to memory is not estimated; plan the job with fsdp, or see describe")
