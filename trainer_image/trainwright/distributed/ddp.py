"""Data parallelism: every rank holds the whole model, and torch's DistributedDataParallel averages the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainwright.distributed.native import OneProcess
from trainwright.distributed.ranks import Ranks


class DataParallel(OneProcess):
    """Data parallelism over several ranks.

    Args:
        options: Options of DistributedDataParallel; see :func:`ddp_kwargs`.
    """

    def __init__(
        self, device: torch.device, ranks: Ranks, data: Ranks | None = None, *, options: dict[str, Any], **more: bool
    ) -> None:
        super().__init__(device, ranks, data, **more)
        self._options = options

    def wrap(self, model: nn.Module) -> nn.Module:
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, **self._options)


def exchanges_every_batch(args: Any) -> bool:
    """Whether ranks exchange gradients after each micro-batch, not only after the last of a step."""
    said = args.accelerator_config.gradient_accumulation_kwargs or {}
    return bool(said.get("sync_each_batch", False))


def ddp_kwargs(args: Any) -> dict[str, Any]:
    """Return the ``ddp_*`` arguments with the names of DistributedDataParallel."""
    find_unused = args.ddp_find_unused_parameters
    if find_unused is None:  # parameters of recomputed activations would look unused
        find_unused = not args.activation_checkpointing
    given = {
        "find_unused_parameters": find_unused,
        "bucket_cap_mb": args.ddp_bucket_cap_mb,
        "broadcast_buffers": args.ddp_broadcast_buffers,
        "static_graph": args.ddp_static_graph,
    }
    return {name: value for name, value in given.items() if value is not None}
