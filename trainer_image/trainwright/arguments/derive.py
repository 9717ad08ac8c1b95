"""Derives values from the given arguments, as transformers does: aliases, missing values, derived attributes.

It is idempotent, so that a copy of derived arguments equals the original.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from trainwright.arguments.enums import DebugOption
from trainwright.job import in_output

from .sharding import completed, is_on

ALIASES = (
    ("gradient_checkpointing", "activation_checkpointing"),
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
)
_FEEDBACK_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")


def derive(args: Any) -> None:
    """Completes checked ``TrainingArguments`` in place."""
    for step in (_output, _aliases, _logging, _evaluation, _best_model, _precision, _compilation, _hardware, _sharding):
        step(args)


def _output(args: Any) -> None:
    folder = os.path.expanduser("trainer_output" if args.output_dir is None else args.output_dir)
    args.output_dir = in_output(folder)
    if args.save_strategy == "steps":
        args.save_steps = _whole(args.save_steps)


def _aliases(args: Any) -> None:
    """Sets the older names to the values of the newer ones, so that code may read either."""
    for old, new in ALIASES:
        if getattr(args, new) is None and getattr(args, old) is not None:
            warnings.warn(f"{old} is the older name of {new}; use that one", FutureWarning, stacklevel=6)
            setattr(args, new, getattr(args, old))
        setattr(args, old, getattr(args, new))
    if args.activation_checkpointing is None:
        args.activation_checkpointing = args.gradient_checkpointing = False


def _logging(args: Any) -> None:
    if args.logging_strategy == "steps":
        args.logging_steps = _whole(args.logging_steps)
    if args.disable_tqdm is None:
        args.disable_tqdm = logging.getLogger("trainwright").getEffectiveLevel() > logging.WARNING
    if isinstance(args.include_num_input_tokens_seen, bool):
        args.include_num_input_tokens_seen = "all" if args.include_num_input_tokens_seen else "no"
    args.report_to = _list(args.report_to)
    args.debug = [DebugOption(option) for option in _list(args.debug)]


def _list(value: Any) -> list[Any]:
    items = (value or "").split() if value is None or isinstance(value, str) else list(value)
    return [] if items == ["none"] else items


def _evaluation(args: Any) -> None:
    if args.eval_strategy == "no":
        return
    args.do_eval = True
    if args.eval_strategy == "steps":
        args.eval_steps = _whole(args.eval_steps or args.logging_steps)


def _best_model(args: Any) -> None:
    needed = args.load_best_model_at_end or args.lr_scheduler_type in _FEEDBACK_SCHEDULERS
    if args.metric_for_best_model is None and needed:
        args.metric_for_best_model = "loss"
    if args.greater_is_better is None and args.metric_for_best_model is not None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")


def _precision(args: Any) -> None:
    args.mixed_precision = "fp16" if args.fp16 else "bf16" if args.bf16 else "no"


def _compilation(args: Any) -> None:
    if args.torch_compile_mode is not None or args.torch_compile_backend is not None:
        args.torch_compile = True
    if args.torch_compile and args.torch_compile_backend is None:
        args.torch_compile_backend = "inductor"


def _hardware(args: Any) -> None:
    if args.accelerator_config is None:
        from .accelerator import AcceleratorConfig

        args.accelerator_config = AcceleratorConfig()
    accumulation = args.accelerator_config.gradient_accumulation_kwargs or {}
    args.gradient_accumulation_steps = accumulation.get("num_steps", args.gradient_accumulation_steps)
    if args.use_cpu:
        args.dataloader_pin_memory = False


def _sharding(args: Any) -> None:
    """As in transformers: ``fsdp`` becomes true, and its words become keys of ``fsdp_config``."""
    if is_on(args.fsdp):
        args.fsdp_config = completed(args.fsdp, args.fsdp_config)
        args.fsdp = True


def _whole(steps: float) -> float:
    return int(steps) if steps > 1 else steps
