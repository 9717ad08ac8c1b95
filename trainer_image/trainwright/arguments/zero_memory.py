"""What of a DeepSpeed configuration decides the memory of a rank; what would change it unseen is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright.arguments import deepspeed
from trainwright.arguments.errors import Mistake
from trainwright.contract import UserError
from trainwright.footprint import Zero

_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "rmsprop", "sgd")
_FORMATS = {"fp32": "fp32", "float32": "fp32", "fp16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16"}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_SECTIONS: dict[str, frozenset[str]] = {
    "zero_optimization": frozenset({
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "ignore_unused_parameters",
        "load_from_fp32_weights", "log_trace_cache_warnings", "offload_optimizer", "offload_param", "overlap_comm",
        "override_module_apply", "reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "stage",
        "sub_group_size",
        "stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
    }),
    "zero_optimization.offload_optimizer": frozenset({
        "buffer_count", "device", "fast_init", "nvme_path", "pin_memory", "pipeline_read", "pipeline_write",
    }),
    "zero_optimization.offload_param": frozenset({
        "buffer_count", "buffer_size", "device", "max_in_cpu", "nvme_path", "pin_memory",
    }),
    "bf16": frozenset({"check_grad_overflow", "enabled"}),
    "fp16": frozenset({
        "auto_cast", "consecutive_hysteresis", "enabled", "hysteresis", "initial_scale_power", "loss_scale",
        "loss_scale_window", "min_loss_scale",
    }),
}  # fmt: skip
"""The keys of each section whose effect on memory is counted, or that have none."""
_UNCOUNTED = ("compile", "data_types", "sparse_gradients", "torch_autocast")
"""Sections and values whose effect is not."""


def zero_of(given: Mapping[str, Any], ranks: int, hidden_size: int | None) -> Zero:
    """How ZeRO spreads a model over ``ranks``.

    Args:
        given: The arguments of a job; ``deepspeed`` is a mapping or the path of a file.
        hidden_size: The width of the model, for sizes that are ``"auto"``.

    Raises:
        UserError: a key has an effect on memory that is not counted here; names it.
    """
    config = _config(given, hidden_size)
    _check(config)
    optimizer_of(given)
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
        stepped=size("sub_group_size", 1e9),
        sent=_sent(config, given),
    )


def optimizer_of(given: Mapping[str, Any]) -> tuple[str, str]:
    """The optimizer of a job with ``deepspeed``, by the names of ``optim`` and ``optim_args``.

    DeepSpeed's own Adam keeps two moments and steps in place, as torch's fused one does.

    Raises:
        UserError: what it needs is not counted.
    """
    section = deepspeed.read_file(given["deepspeed"]).get("optimizer")
    if section is None:
        name = str(given.get("optim", "adamw_torch_fused"))
        if name not in _OPTIMIZERS:
            raise _not_counted(f"optim {name}")
        return name, str(given.get("optim_args", ""))
    kind, params = str(section.get("type", "")).lower(), section.get("params") or {}
    if kind in ("adam", "adamw"):
        return ("adamw_torch" if params.get("torch_adam") else "adamw_torch_fused"), ""
    if kind == "sgd":
        return "sgd", "momentum" if params.get("momentum") else ""
    raise _not_counted(f"optimizer.type {section.get('type')}")


def _sent(config: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """Bytes of an element of the copy in which gradients are sent, if their own format is another."""
    given_name = config.get("communication_data_type")
    if given_name is None:
        return 0
    name = _FORMATS.get(str(given_name))
    if name is None:
        raise _not_counted(f"communication_data_type {given_name}")
    own = next(
        (key for key in ("bf16", "fp16") if given.get(key) or deepspeed.get(config, f"{key}.enabled") is True), "fp32"
    )
    return 0 if name == own else _BYTES[name]


def _config(given: Mapping[str, Any], hidden_size: int | None) -> deepspeed.Config:
    try:
        config = deepspeed.check(given["deepspeed"])
        return deepspeed.finished(config, hidden_size, max_steps=1, warmup_steps=1)
    except Mistake as mistake:
        raise UserError(f"deepspeed: {mistake}") from None


def _check(config: Mapping[str, Any]) -> None:
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


def _not_counted(path: str) -> UserError:
    return UserError(f"deepspeed: what {path} does to memory is not estimated; plan the job with fsdp, or see describe")
