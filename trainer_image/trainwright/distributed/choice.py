"""Select the strategy of a run."""

from __future__ import annotations

from typing import Any

from trainwright.distributed.ddp import DataParallel, ddp_kwargs, exchanges_every_batch
from trainwright.distributed.native import OneProcess
from trainwright.distributed.ranks import Ranks
from trainwright.distributed.spmd import Spmd
from trainwright.distributed.strategy import Strategy


def choose(args: Any) -> Strategy:
    """Return the strategy for these arguments; ``args.device`` has already joined the process group."""
    device, ranks = args.device, Ranks.current()
    given = {"fp16": args.fp16, "exchanges_every_batch": exchanges_every_batch(args)}
    if device.type == "xla":
        return Spmd(device, ranks, **given)
    if args.world_size > 1:
        return DataParallel(device, ranks, options=ddp_kwargs(args), **given)
    return OneProcess(device, ranks, **given)
