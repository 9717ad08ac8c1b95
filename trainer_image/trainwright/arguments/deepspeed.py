"""The value of ``deepspeed``: which keys are honoured, what ``"auto"`` becomes, and what contradicts the arguments.

The keys are DeepSpeed's, and ``"auto"`` is filled as Hugging Face documents it, in two stages: by :func:`filled` from
the arguments, and by :func:`finished` from the model and the number of steps. Keys that are absent but that an argument
decides (the batch sizes, clipping, the number format) are filled too, so that no argument is without effect.
"""

from __future__ import annotations

import base64
import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from trainwright.nearest import did_you_mean

from .errors import Mistake

Config = dict[str, Any]
AUTO = "auto"

HONOURED = frozenset({
    "aio", "bf16", "bfloat16", "check_overflow", "checkpoint", "comet", "comms_logger", "communication_data_type",
    "compile", "csv_monitor", "data_types", "disable_allgather", "disable_python_gc", "dump_state", "flops_profiler",
    "fp16", "gradient_accumulation_steps", "gradient_allreduce_op", "gradient_clipping", "gradient_predivide_factor",
    "log_level", "memory_breakdown", "optimizer", "prescale_gradients", "scheduler", "sparse_gradients",
    "steps_per_print", "tensorboard", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
    "vocabulary_size", "wall_clock_breakdown", "wandb", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
})  # fmt: skip
"""The sections and values that DeepSpeed gets as they are, after ``"auto"`` is filled."""

_NOT_TRIED = "it changes what is trained, and was never tried here; leave it out"
_NO_FILES = "checkpoints are written by the Trainer; leave it out"
REFUSED = {
    "activation_checkpointing": "models of transformers do not use DeepSpeed's; set gradient_checkpointing instead",
    "amp": "it is of apex; set bf16 or fp16",
    "autotuning": "it starts the training many times; leave it out",
    "compression_training": _NOT_TRIED,
    "curriculum_learning": "the Trainer orders the samples; leave it out",
    "data_efficiency": "the Trainer orders the samples; leave it out",
    "dataloader_drop_last": "the Trainer makes the loaders; set the argument of that name",
    "eigenvalue": _NOT_TRIED,
    "elasticity": "the number of processes is that of the job; leave it out",
    "expert_parallel": "expert parallelism is not built yet; leave it out",
    "hybrid_engine": _NOT_TRIED,
    "managed_gradient_accumulation": "the Trainer counts the micro-batches; leave it out",
    "nebula": _NO_FILES,
    "pipeline": "pipeline parallelism is not built; leave it out",
    "progressive_layer_drop": _NOT_TRIED,
    "quantize_training": _NOT_TRIED,
    "seq_parallel_communication_data_type": "sequence parallelism is not built yet; leave it out",
    "sequence_parallel_size": "sequence parallelism is not built yet; leave it out",
    "sparse_attention": _NOT_TRIED,
    "tensor_parallel": "tensor parallelism is not built yet; leave it out",
    "use_data_before_expert_parallelism": "expert parallelism is not built yet; leave it out",
    "weight_quantization": _NOT_TRIED,
    "checkpoint.load_universal": "any layout resumes from the usual checkpoints; leave it out",
    "checkpoint.parallel_write": _NO_FILES,
    "checkpoint.writer": _NO_FILES,
    "zero_optimization.mics_shard_size": "shards within a node are not built with DeepSpeed; see fsdp: hybrid_shard",
    "zero_optimization.zenflow": _NOT_TRIED,
}
"""Key, or path of keys -> why a value other than none is refused."""
_OFF: tuple[Any, ...] = (None, False, {}, 0, -1, 1)
"""Values that switch off whatever has them."""
STAGES = (1, 2, 3)
_STAGE = "zero_optimization.stage"


class _Match(NamedTuple):
    """A key that an argument decides: if it is there and not ``"auto"``, it must have the value of the argument."""

    path: str
    argument: str
    value: Callable[[Mapping[str, Any]], Any]


def _of(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda values: values[name]


def _accumulated(values: Mapping[str, Any]) -> int:
    said = getattr(values.get("accelerator_config"), "gradient_accumulation_kwargs", None) or {}
    return int(said.get("num_steps", values["gradient_accumulation_steps"]))


_FP16 = _Match("fp16.enabled", "fp16", lambda values: bool(values["fp16"] or values["fp16_full_eval"]))
_BF16 = _Match("bf16.enabled", "bf16", lambda values: bool(values["bf16"] or values["bf16_full_eval"]))
_MATCHES = (
    _Match("train_micro_batch_size_per_gpu", "per_device_train_batch_size", _of("per_device_train_batch_size")),
    _Match("gradient_accumulation_steps", "gradient_accumulation_steps", _accumulated),
    _Match("gradient_clipping", "max_grad_norm", _of("max_grad_norm")),
    _Match("optimizer.params.lr", "learning_rate", _of("learning_rate")),
    _Match("optimizer.params.betas", "adam_beta1 and adam_beta2", lambda v: [v["adam_beta1"], v["adam_beta2"]]),
    _Match("optimizer.params.eps", "adam_epsilon", _of("adam_epsilon")),
    _Match("optimizer.params.weight_decay", "weight_decay", _of("weight_decay")),
    _Match("scheduler.params.warmup_max_lr", "learning_rate", _of("learning_rate")),
    _FP16,
    _BF16,
)
_DEFAULTS = {
    _STAGE: 2,
    "zero_optimization.offload_optimizer.device": "none",
    "zero_optimization.offload_param.device": "none",
    "zero_optimization.offload_optimizer.nvme_path": "none",
    "zero_optimization.offload_param.nvme_path": "none",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": False,
    "scheduler.params.warmup_min_lr": 0,
}
"""What ``"auto"`` becomes where no argument decides: accelerate's defaults."""
BY_HIDDEN_SIZE: dict[str, Callable[[int], int]] = {
    "zero_optimization.reduce_bucket_size": lambda hidden: hidden * hidden,
    "zero_optimization.stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "zero_optimization.stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}
_TOTAL, _WARMUP = "scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps"
_BATCH = "train_batch_size"
FILLED = (*(match.path for match in _MATCHES), *_DEFAULTS, *BY_HIDDEN_SIZE, _TOTAL, _WARMUP, _BATCH)
"""Every path that may say ``"auto"``."""


# -- reading


def read_file(value: Any) -> Config:
    """A copy of the configuration: a mapping, or the path of a JSON file, or JSON text in base64. Raises Mistake."""
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value))
    text = str(value)
    try:
        if os.path.exists(text):
            with open(text, encoding="utf-8") as file:
                config = json.load(file)
        else:
            config = json.loads(base64.urlsafe_b64decode(text).decode())
    except OSError as error:
        raise Mistake(f"cannot read the file {text!r}: {error.strerror}", type(error)) from None
    except ValueError as error:
        if os.path.exists(text):
            raise Mistake(f"the file {text!r} is not JSON: {error}") from None
        raise Mistake(f"there is no file {text!r}; give the path of a DeepSpeed configuration") from None
    if not isinstance(config, dict):
        raise Mistake(f"the file {text!r} must hold an object, as DeepSpeed's configurations do")
    return config


def check(value: Any) -> Config:
    """The configuration, after checks that need nothing else. Raises :class:`Mistake` that names the key."""
    config = read_file(value)
    _check_keys(config)
    _check_stage(config)
    for path in ("zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device"):
        device = get(config, path)
        if str(device).lower() not in ("none", "cpu", AUTO):
            raise Mistake(f"{path}: {device!r} is not supported: checkpoints do not hold what lies there; use 'cpu'")
    for path, given in _leaves(config):
        if given == AUTO and path not in FILLED:
            raise Mistake(f"{path}: 'auto' is not filled for this key; give it a value, or leave it out")
    if all(str(get(config, f"{name}.enabled")).lower() == "true" for name in ("fp16", "bf16")):
        raise Mistake("fp16.enabled and bf16.enabled are both true; keep one")
    return config


def _check_keys(config: Config) -> None:
    for path, reason in REFUSED.items():
        value = get(config, path)
        is_off = isinstance(value, Mapping) and str(value.get("enabled")).lower() == "false"
        if not (is_off or any(value is each or value == each for each in _OFF)):
            raise Mistake(f"{path} is not supported: {reason}")
    for key in config:
        if key not in HONOURED and key not in REFUSED and not key.startswith(("_", "#")):
            raise Mistake(f"{key} is not a key that is supported here{did_you_mean(key, HONOURED)}")


def _check_stage(config: Config) -> None:
    given = config.get("zero_optimization")
    if not isinstance(given, Mapping):
        raise Mistake("zero_optimization is missing, and without it nothing is sharded; give it a stage of 1, 2 or 3")
    stage = given.get("stage")
    if stage in (None, 0):
        raise Mistake(
            f"{_STAGE}: {'it is missing' if stage is None else '0 shards nothing'}; set 1, 2 or 3, or leave "
            "deepspeed out to train data parallel"
        )
    if stage != AUTO and (isinstance(stage, bool) or stage not in STAGES):
        raise Mistake(f"{_STAGE}: must be 1, 2 or 3, not {stage!r}")


def stage_of(config: Mapping[str, Any]) -> int:
    """The stage of ZeRO, with ``"auto"`` as accelerate fills it."""
    stage = get(config, _STAGE)
    return 2 if stage == AUTO else int(stage)


def offloads(config: Mapping[str, Any], what: str) -> bool:
    """Whether the optimizer's state (``optimizer``) or the parameters (``param``) are kept in host memory."""
    return str(get(config, f"zero_optimization.offload_{what}.device")).lower() == "cpu"


def get(config: Mapping[str, Any], path: str) -> Any:
    """The value at ``a.b.c``; None where there is none."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _holder(config: Config, path: str) -> tuple[Config | None, str]:
    """The section that holds the last key of ``path``, if it is there, and that key."""
    *sections, key = path.split(".")
    holder = get(config, ".".join(sections)) if sections else config
    return (holder if isinstance(holder, dict) else None), key


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# -- filling


def conflicts(config: Config, values: Mapping[str, Any]) -> list[str]:
    """What contradicts the arguments: a line for each, with both values.

    Args:
        values: Every argument by name.
    """
    found = [line for match in _MATCHES if (line := _conflict(config, match, match.value(values))) is not None]
    return [*found, *_made_twice(config, values)]


def _made_twice(config: Config, values: Mapping[str, Any]) -> Iterator[str]:
    """An optimizer or a schedule that both the configuration and an argument name."""
    for section, argument, default in (
        ("optimizer", "optim", "adamw_torch_fused"),
        ("scheduler", "lr_scheduler_type", "linear"),
    ):
        named = getattr(values[argument], "value", values[argument])
        if section in config and named not in (default, "adamw_torch"):
            yield f"{section}.type is {get(config, section + '.type')} here, and {argument} is {named}; leave one out"


def _conflict(config: Config, match: _Match, expected: Any) -> str | None:
    given = get(config, match.path)
    if given is None or given == AUTO or _alike(given, expected):
        return None
    return f'{match.path} is {given} here, and {match.argument} is {expected}; set both alike, or the first to "auto"'


def _alike(given: Any, expected: Any) -> bool:
    if isinstance(given, list | tuple) and isinstance(expected, list):
        return len(given) == len(expected) and all(map(_alike, given, expected))
    try:
        return bool(given == expected or float(given) == float(expected))
    except (TypeError, ValueError):
        return False


def filled(config: Config, values: Mapping[str, Any], world_size: int) -> Config:
    """The configuration with all that the arguments decide.

    Raises:
        Mistake: It contradicts the arguments; names both values.
    """
    config = copy.deepcopy(config)
    micro, steps = values["per_device_train_batch_size"], _accumulated(values)
    batch = _Match(_BATCH, f"{world_size} processes x {micro} samples x {steps} accumulated", lambda _: None)
    found = [*conflicts(config, values), _conflict(config, batch, world_size * micro * steps)]
    if problems := [line for line in found if line is not None]:
        raise Mistake("; ".join(problems))
    for match in _MATCHES:
        _fill(config, match.path, match.value(values))
    _fill(config, _BATCH, world_size * micro * steps)
    for path, default in _DEFAULTS.items():
        _fill(config, path, default)
    config.setdefault("train_micro_batch_size_per_gpu", micro)
    config.setdefault("gradient_accumulation_steps", steps)
    config.setdefault("gradient_clipping", values["max_grad_norm"])
    _fill_precision(config, values)
    if values["save_on_each_node"]:
        config.setdefault("checkpoint", {})["use_node_local_storage"] = True
    return config


def _fill_precision(config: Config, values: Mapping[str, Any]) -> None:
    """A number format that only the arguments name, as accelerate adds it."""
    if values["fp16"]:
        config.setdefault("fp16", {"enabled": True, "auto_cast": True})
    elif values["bf16"]:
        config.setdefault("bf16", {"enabled": True})
    for name in ("fp16", "bf16"):
        config.setdefault(name, {"enabled": False})


def _fill(config: Config, path: str, value: Any) -> None:
    holder, key = _holder(config, path)
    if holder is not None and holder.get(key) == AUTO:
        holder[key] = value


def finished(config: Config, hidden_size: int | None, max_steps: int, warmup_steps: int) -> Config:
    """The configuration with what the model and the length of the run decide.

    Args:
        hidden_size: The width of the model, None if it does not state one.

    Raises:
        Mistake: The number of steps contradicts it, or the width is needed and not known.
    """
    config = copy.deepcopy(config)
    warmup_steps = max(1, warmup_steps)  # DeepSpeed refuses a warmup of no step
    matches = (
        (_Match(_TOTAL, "the number of steps of this run", lambda _: None), max_steps),
        (_Match(_WARMUP, "warmup_steps", lambda _: None), warmup_steps),
    )
    if problems := [line for match, expected in matches if (line := _conflict(config, match, expected)) is not None]:
        raise Mistake("; ".join(problems))
    for match, expected in matches:
        _fill(config, match.path, expected)
    automatic = [path for path in BY_HIDDEN_SIZE if get(config, path) == AUTO]
    if automatic and hidden_size is None:
        raise Mistake(f"{automatic[0]}: 'auto' follows the model's hidden_size, and its configuration has none")
    for path in automatic:
        _fill(config, path, BY_HIDDEN_SIZE[path](hidden_size))  # type: ignore[arg-type]
    return config


def hidden_size_of(configuration: Any) -> int | None:
    """The width of a model by its configuration, as transformers finds it; the largest if there are several."""
    for one in (configuration, getattr(configuration, "text_config", None)):
        if isinstance(width := getattr(one, "hidden_size", None), int):
            return width
        if widths := getattr(one, "hidden_sizes", None):
            return int(max(widths))
    return None
