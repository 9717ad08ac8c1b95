"""Select the strategy of a run."""

from __future__ import annotations

import os
from typing import Any

from trainwright.arguments import deepspeed, sharding
from trainwright.arguments.errors import Mistake
from trainwright.arguments.fields import FIELDS
from trainwright.contract import UserError
from trainwright.distributed.ddp import DataParallel, ddp_kwargs, exchanges_every_batch
from trainwright.distributed.native import OneProcess
from trainwright.distributed.ranks import Ranks
from trainwright.distributed.spmd import Spmd
from trainwright.distributed.strategy import Strategy


def choose(args: Any) -> Strategy:
    """Return the strategy for these arguments; ``args.device`` has already joined the process group."""
    device, ranks = args.device, Ranks.current()
    given = {"fp16": args.fp16, "exchanges_every_batch": exchanges_every_batch(args)}
    if device.type in ("xla", "tpu") and sharding.is_on(args.fsdp):
        raise UserError("fsdp: TPUs are sharded by their own compiler; leave fsdp out")
    if args.deepspeed:
        return _zero(args, ranks)
    if device.type == "xla":
        return Spmd(device, ranks, **given)
    if sharding.is_on(args.fsdp):
        return _fully_shard(args, ranks, given)
    if args.world_size > 1:
        return DataParallel(device, ranks, options=ddp_kwargs(args), **given)
    return OneProcess(device, ranks, **given)


def _zero(args: Any, ranks: Ranks) -> Strategy:
    if args.device.type in ("xla", "tpu"):
        raise UserError("deepspeed: it does not know TPUs; leave it out")
    _check_even_batches(args, "deepspeed")
    from trainwright.distributed.deepspeed import Zero

    try:
        values = {name: getattr(args, name) for name in FIELDS if hasattr(args, name)}
        config = deepspeed.filled(deepspeed.read_file(args.deepspeed), values, args.world_size)
    except Mistake as mistake:
        raise UserError(f"deepspeed: {mistake}") from None
    level = args.get_process_log_level()
    return Zero(args.device, ranks, config=config, warmup_steps=args.get_warmup_steps, level=level)


def _check_even_batches(args: Any, field: str) -> None:
    if not args.accelerator_config.even_batches:
        raise UserError(
            f"accelerator_config: without even_batches ranks make different numbers of steps, and with {field} each "
            "needs all; leave it on"
        )


def _fully_shard(args: Any, ranks: Ranks, given: dict[str, Any]) -> Strategy:
    import torch

    from trainwright.distributed.fsdp import FullyShard

    _check_even_batches(args, "fsdp")
    settings = sharding.read(args.fsdp, args.fsdp_config)
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    sizes = sharding.sizes(settings, args.parallelism_config, args.world_size, local_world_size)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return FullyShard(args.device, ranks, sizes=sizes, settings=settings, dtype=dtype, **given)
