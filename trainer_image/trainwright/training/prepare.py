"""Preparation of a model before the first step: accelerator, placement, data parallelism, compilation."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import nn

from trainwright.arguments.environment import compile_options
from trainwright.arguments.sharding import is_on
from trainwright.checkpoint.deferred import fill, fill_in_turn
from trainwright.contract import UserError
from trainwright.devices import tpu
from trainwright.distributed.ddp import ddp_kwargs
from trainwright.distributed.named_state import is_partitioned
from trainwright.distributed.strategy import Strategy
from trainwright.training.activation_checkpointing import recompute_layer
from trainwright.training.precision import autocast_forward, training_dtype


def make_accelerator(kwargs: dict[str, Any]) -> Accelerator:
    """Create the Accelerator; see :func:`accelerator_kwargs`."""
    AcceleratorState._reset_state()  # an earlier Trainer may have had another precision
    return Accelerator(**kwargs)


def accelerator_kwargs(args: Any) -> dict[str, Any]:
    """Return accelerate's settings for the device and the ranks that ``args.device`` has set up.

    The Trainer does gradient accumulation and compilation, so for accelerate every batch is a step and nothing is
    compiled. Other features that a script uses, for example to prepare a loader, follow the arguments.
    """
    assert args.device is not None
    return {
        "cpu": args.device.type == "cpu",
        "mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "no",
        "gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1),
        "dynamo_backend": "no",
        "dataloader_config": dataloader_configuration(args),
        "kwargs_handlers": [DistributedDataParallelKwargs(**ddp_kwargs(args))],
    }


def dataloader_configuration(args: Any) -> DataLoaderConfiguration:
    """Return how accelerate distributes the batches of a loader that a script prepares."""
    config, names = args.accelerator_config, ("split_batches", "dispatch_batches", "even_batches")
    said = {name: getattr(config, name) for name in (*names, "use_seedable_sampler", "non_blocking")}
    return DataLoaderConfiguration(data_seed=args.data_seed, **said)


def spread(model: nn.Module) -> bool:
    """Whether the layers of a model are already on several devices."""
    places = set((getattr(model, "hf_device_map", None) or {}).values()) - {"cpu", "disk"}
    return len(places) > 1


def placed(model: nn.Module, args: Any) -> bool:
    """Whether the model must be moved to the device: no if ``args`` disables it or the model has a device map."""
    return not (
        args.place_model_on_device is False
        or is_on(args.fsdp)  # each unit is moved when it is sharded
        or args.deepspeed  # as a whole, by the engine
        or getattr(model, "hf_device_map", None) is not None
        or getattr(model, "quantization_method", None) == "bitsandbytes"  # refuses to be moved
        or any(p.is_meta for p in model.parameters())
    )


def check_places(model: nn.Module, args: Any) -> None:
    """Raises :class:`UserError` for a model that cannot be trained with its device map."""
    places = getattr(model, "hf_device_map", None) or {}
    away = {"disk"} if args.device.type == "cpu" else {"disk", "cpu"}
    if offloaded := [name or "the model" for name, place in places.items() if str(place) in away]:
        raise UserError(
            f"model: its device_map keeps {', '.join(offloaded[:3])} off the device, to be computed with but not "
            "trained; load it without offloading, over more devices or with a smaller number format"
        )
    if spread(model) and args.world_size > 1:
        raise UserError(
            f"model: its device_map spreads it over several devices, which {args.world_size} processes cannot each "
            "have; start one process, or load the model without a device_map"
        )


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model and keep its tied weights tied.

    On a device without addresses, like torch_xla's, a move would create one parameter for every name.
    """
    tied = tied_names(model) if device.type == "xla" else []
    model.to(device)
    for first, *others in tied:
        parameter = model.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [alike for alike in names.values() if len(alike) > 1]


def wrap_model(model: nn.Module, args: Any, strategy: Strategy) -> nn.Module:
    """Return the module for training: with autocast, spread over the ranks, and compiled, each if enabled."""
    if strategy.owns_checkpoints:
        return _of_engine(model, args, strategy)
    autocast_forward(model, args.device, training_dtype(args))
    if strategy.sharded:
        return _sharded(model, args, strategy)
    model = strategy.wrap(model)
    return cast(nn.Module, _compiled(model, args)) if args.torch_compile else model


def wrap_for_evaluation(model: nn.Module, args: Any, strategy: Strategy) -> nn.Module:
    """Return the module for evaluation outside of training; its forward does not synchronise gradients."""
    if strategy.owns_checkpoints:
        fill(model)  # whole, as there is no engine yet
        return strategy.wrap(model)
    autocast_forward(model, args.device, training_dtype(args))
    if strategy.sharded:
        return _sharded(model, args, strategy)
    return cast(nn.Module, _compiled(model, args)) if args.torch_compile else model


def divide_parts(model: nn.Module, strategy: Strategy, max_steps: int) -> None:
    """Partition a model of ZeRO 3, one parameter after the other, with the values that it may have been made without.

    So no device holds more than its parts and one parameter, and no host if the model was made without values.
    """
    if strategy.sharded and strategy.owns_checkpoints and not all(map(is_partitioned, model.parameters())):
        engine: Any = strategy
        divide, leads = engine.divider(model, max_steps), strategy.ranks.rank == 0
        strategy.ranks.agree(lambda: fill_in_turn(model, divide, strategy.device, engine.dtype, reads=leads))


def _of_engine(model: nn.Module, args: Any, strategy: Strategy) -> nn.Module:
    """Return DeepSpeed's engine, which compiles its module itself."""
    engine: Any = strategy.wrap(model)
    if args.torch_compile and not engine.is_compiled:
        options = {"mode": args.torch_compile_mode, **compile_options()}
        engine.compile(backend=args.torch_compile_backend or "inductor", compile_kwargs=options)
    return cast(nn.Module, engine)


def _sharded(model: nn.Module, args: Any, strategy: Strategy) -> nn.Module:
    """Shard a model, and then give it the values that it was made without."""
    _prepare_units(model, args, strategy)
    wrapped = strategy.wrap(model)
    fill(model, "cpu" if strategy.offloads else args.device)
    return wrapped


def _prepare_units(model: nn.Module, args: Any, strategy: Strategy) -> None:
    """Recompute and compile the units of a model that will be sharded: inside of what gathers their parameters."""
    if hasattr(model, "_units_prepared"):
        return
    vars(model)["_units_prepared"] = True
    for unit in strategy.units(model):
        if strategy.settings.activation_checkpointing:  # type: ignore[attr-defined]
            recompute_layer(unit)
        if args.torch_compile:
            vars(unit)["forward"] = _compiled(unit.forward, args)


def _compiled(model: Any, args: Any) -> Any:
    backend, mode = args.torch_compile_backend or "inductor", args.torch_compile_mode
    if args.device.type == "xla":
        raise UserError("torch_compile: torch_xla compiles every step as it is; leave torch_compile out")
    if args.device.type == "tpu" and backend == "inductor":
        backend = tpu.COMPILER
    try:
        options: dict[str, Any] = compile_options()
        return torch.compile(model, backend=backend, mode=mode, **options)
    except RuntimeError as error:
        field = "torch_compile_mode" if "mode" in str(error) else "torch_compile_backend"
        raise UserError(f"{field}: {str(error).splitlines()[0]}") from error


def check_output_folder(args: Any) -> None:
    """Raises :class:`UserError` if the output folder cannot be created."""
    try:
        os.makedirs(args.output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: {args.output_dir}: {error.strerror}; choose another folder") from None
