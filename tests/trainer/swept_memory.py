"""The estimate of a step over the architectures of the sweep, beside every storage that torch makes in one.

FSDP's two ranks are one process in a group of which the other rank is made up: it allocates what a rank allocates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from sweep.architectures import LENGTH, Architecture
from trainer.counted import Counted, resized_by_fsdp
from trainwright.arguments.sharding import Fsdp
from trainwright.declarative import footprint
from trainwright.declarative.footprint import Sample, Step
from trainwright.distributed.fsdp import units_of
from trainwright.footprint import Layout, estimate

ROWS, RANKS = 8, 2
LABELS = {"causal": "tokens", "masked": "tokens", "seq2seq": "tokens", "classification": "row", "tokens": "tokens"}
"""Tasks that a manifest can name -> their labels."""


@contextmanager
def made_up_ranks() -> Iterator[None]:
    with mock.patch.object(sys, "excepthook", sys.excepthook):  # torch sets one of its own
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def estimated(architecture: Architecture, fsdp: Fsdp | None) -> float:
    """Bytes. Raises UserError for a model that looks at values."""
    with footprint._without_storage():
        figures = footprint.trace(architecture.model(), Step(ROWS, fsdp=fsdp), sample_of(architecture))
    return estimate(figures, Layout(RANKS, RANKS) if fsdp else Layout(), "adamw_torch_fused").total


def sample_of(architecture: Architecture) -> Sample:
    return Sample(LENGTH, LABELS[architecture.task])


def counted(architecture: Architecture, fsdp: Fsdp | None) -> int:
    """The peak of a second step with AdamW, in bytes, without the batch."""
    with Counted() as found, resized_by_fsdp(found):
        model: Any = architecture.model().train()
        model.config.use_cache = False
        if fsdp is not None:
            for module in [*units_of(model, fsdp), model]:
                fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
        batch = footprint._inputs(ROWS, sample_of(architecture))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            found.peak = found.now
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    return found.peak - sum(tensor.nbytes for tensor in batch.values())
