"""The environment variables of ``accelerate launch``: each is applied, or refused by name.

They set arguments that are not given, so that all readers of the arguments follow them. The table in
``tests/trainer/test_accelerate_launch.py`` lists the variables and the effect of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from . import sharding
from .errors import ArgumentError, Mistake, NotBuiltError, Problem

_SHARDING = "not built yet; use --use_fsdp, or train data parallel, without"
_UNBUILT = {
    "ACCELERATE_USE_DEEPSPEED": "give the configuration as the argument deepspeed, and launch without --use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": f"{_SHARDING} --use_megatron_lm",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "compiling block by block is not built yet; compile the whole model",
}
"""Switches -> why they are refused when they are on. The variables with their details are ignored."""

_FLAGS = {"1": True, "true": True, "yes": True, "y": True, "t": True, "on": True}
_FLAGS |= {"0": False, "false": False, "no": False, "n": False, "f": False, "off": False, "": False}
_PRECISIONS = ("no", "fp16", "bf16")


def apply(args: Any) -> None:
    """Applies the environment to arguments of any class. Raises :class:`ArgumentError`."""
    for name, value in settings(vars(args)).items():
        setattr(args, name, value)


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> its value from the environment; ``values`` take precedence. Raises :class:`ArgumentError`."""
    try:
        if unbuilt := list(_unbuilt()):
            raise NotBuiltError(unbuilt)
        _agree("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", values)
        _agree("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm", values)
        return {**_device(), **_precision(values), **_compilation(values), **_sharding(values)}
    except Mistake as mistake:
        name, _, message = str(mistake).partition(": ")
        raise ArgumentError([Problem(name, message)]) from None


def compile_options() -> dict[str, bool]:
    """The options of torch.compile that have no argument."""
    variables = {"fullgraph": "ACCELERATE_DYNAMO_USE_FULLGRAPH", "dynamic": "ACCELERATE_DYNAMO_USE_DYNAMIC"}
    return {option: is_on(name) for option, name in variables.items() if os.environ.get(name)}


def is_on(name: str) -> bool:
    """The value of a flag. Raises :class:`Mistake` for a value that is neither true nor false."""
    value = os.environ.get(name, "")
    if value.lower() not in _FLAGS:
        raise Mistake(f"{name}: must be true or false, not {value!r}")
    return _FLAGS[value.lower()]


def _unbuilt() -> Iterator[Problem]:
    for name, reason in _UNBUILT.items():
        if is_on(name):
            yield Problem(name, f"is not supported: {reason}")
    kind = os.environ.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "NO")
    if is_on("ACCELERATE_USE_SAGEMAKER") and kind != "NO":
        reason = "SageMaker's own parallelism is not built; set distributed_type to NO, and use torchrun"
        yield Problem("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", f"{kind} is not supported: {reason}")


def _device() -> dict[str, Any]:
    return {"use_cpu": True} if is_on("ACCELERATE_USE_CPU") else {}


def _precision(values: Mapping[str, Any]) -> dict[str, Any]:
    name = "ACCELERATE_MIXED_PRECISION"
    precision = os.environ.get(name, "no").lower()
    if values.get("bf16") or values.get("fp16") or precision == "no":
        return {}
    if precision == "fp8":
        raise NotBuiltError([Problem(name, "fp8 is not built yet; set it to bf16")])
    if precision not in _PRECISIONS:
        raise Mistake(f"{name}: must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
    return {precision: True}


def _compilation(values: Mapping[str, Any]) -> dict[str, Any]:
    """torch's names for accelerate's settings: a backend enables compilation, and ``NO`` means none."""
    backend, mode = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(), os.environ.get("ACCELERATE_DYNAMO_MODE")
    if any(values.get(name) for name in ("torch_compile", "torch_compile_mode", "torch_compile_backend")):
        return {"torch_compile_mode": mode} if mode and values.get("torch_compile_mode") is None else {}
    if backend in ("no", ""):
        return {}
    return {"torch_compile": True, "torch_compile_backend": backend, "torch_compile_mode": mode or "default"}


def _sharding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that ``fsdp_config`` does not have come from the environment, as in accelerate."""
    found: dict[str, Any] = {}
    if is_on("ACCELERATE_USE_FSDP"):
        given = sharding.read_file(values.get("fsdp_config"))
        implied = sharding.completed(values.get("fsdp"), given)
        own = {key: value for key, value in implied.items() if value or key in given}
        found = {"fsdp": values.get("fsdp") or True, "fsdp_config": sharding.from_environment(os.environ) | own}
    if is_on("ACCELERATE_USE_PARALLELISM_CONFIG") and values.get("parallelism_config") is None:
        found["parallelism_config"] = sharding.sizes_from_environment(os.environ)
    return found


def _agree(name: str, field: str, values: Mapping[str, Any]) -> None:
    """Raises :class:`Mistake` if a variable that accelerate only passes to DeepSpeed differs from the argument."""
    given, value = os.environ.get(name, "auto"), values.get(field)
    if given not in ("auto", str(value), str(float(value)) if isinstance(value, int | float) else None):
        raise Mistake(f"{name}: is {given}, but {field} is {value}; set {field}, and unset the variable")
