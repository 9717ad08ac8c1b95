"""The arguments that a Trainer is given: none, ours, or those of transformers."""

from __future__ import annotations

from typing import Any

from trainwright.distributed.ranks import Ranks
from trainwright.trainer.introspection import TrainerError


def checked_arguments(args: Any) -> Any:
    """The arguments as they are now, looked at again; the defaults for None.

    Raises :class:`UserError`.
    """
    from trainwright.arguments import TrainingArguments

    if args is None:
        return TrainingArguments(output_dir="tmp_trainer")
    if hasattr(args, "check"):
        args.check()
    elif hasattr(args, "output_dir"):
        _check_theirs(args)
    else:
        raise TrainerError(f"args: give TrainingArguments, not {type(args).__name__}; the model comes before them")
    return args


def _check_theirs(args: Any) -> None:
    from trainwright.arguments import AcceleratorConfig, environment
    from trainwright.arguments.fields import FIELDS
    from trainwright.arguments.validate import checked

    environment.obey(args)
    _complete(args)
    values = checked({name: getattr(args, name) for name in FIELDS if hasattr(args, name)})
    args.accelerator_config = values["accelerator_config"] or AcceleratorConfig()
    accumulation = args.accelerator_config.gradient_accumulation_kwargs or {}
    args.gradient_accumulation_steps = accumulation.get("num_steps", args.gradient_accumulation_steps)
    _check_together(args)


def _complete(args: Any) -> None:
    """What an older transformers has under its older name, or not at all, as ours has it."""
    from trainwright.arguments import TrainingArguments
    from trainwright.arguments.derive import ALIASES

    for older, name in ALIASES:
        if not hasattr(args, name) and hasattr(args, older):
            setattr(args, name, getattr(args, older) or None)
    if missing := [name for name in TrainingArguments.__dataclass_fields__ if not hasattr(args, name)]:
        ours = TrainingArguments(output_dir=str(args.output_dir))
        for name in missing:
            setattr(args, name, getattr(ours, name))


def _check_together(args: Any) -> None:
    """Their arguments find no accelerator and leave the process by itself, though it has joined a group."""
    ranks = Ranks.current()
    if args.world_size < ranks.world_size:
        raise TrainerError(
            f"use_cpu: this process is one of {ranks.world_size}, and these arguments would let each train by itself, "
            "into the same output; transformers' arguments join processes on CPUs with use_cpu=True alone: set it"
        )
