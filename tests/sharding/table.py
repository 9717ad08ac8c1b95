"""A table of models and ways to shard them: how far each is from one process, in loss and gradient norm, over 20 steps.

    cd tests && OMP_NUM_THREADS=1 python -m sharding [model ...]

Every run takes the same 8 samples a step, in float32. With SGD the largest relative difference must stay below 1e-5;
AdamW amplifies the order of sums: its difference is shown, and bounded by five times the largest that was seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from sharding.models import KINDS
from trainer.runs import logged, make
from trainer.world import in_world

STEPS, BATCH = 20, 8
LIMITS = {"sgd": 1e-5, "adamw_torch_fused": 5e-3}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "FSDP 2 on 2 ranks": (2, {"fsdp": "full_shard"}),
    "FSDP 2 on 4 ranks": (4, {"fsdp": "full_shard"}),
    "HSDP 2 x 2": (4, {"fsdp": "full_shard", "parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 2}}),
}
ZERO: dict[str, tuple[int, dict[str, Any]]] = {
    f"ZeRO {stage} on 2 ranks": (2, {"deepspeed": {"zero_optimization": {"stage": stage}}}) for stage in (1, 2, 3)
}
"""Those that need the environment of ``make deepspeed``."""
Log = dict[str, list[float]]


def run(name: str, optim: str, options: dict[str, Any]) -> Log:
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    kind = KINDS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(
            folder, kind.model(), kind.data(), optim=optim, max_steps=STEPS, learning_rate=1e-2,
            train_sampling_strategy="sequential", per_device_train_batch_size=BATCH // ranks, logging_first_step=True,
            **options,
        )  # fmt: skip
        trainer.train()
    return {key: logged(trainer, key) for key in ("loss", "grad_norm")}


def all_of(asked: tuple[list[str], dict[str, Any]]) -> dict[tuple[str, str], Log]:
    names, options = asked
    return {(name, optim): run(name, optim, options) for name in names for optim in LIMITS}


def apart(log: Log, expected: Log) -> dict[str, float]:
    """The largest relative difference of each key."""
    return {
        key: max(abs(a - b) / abs(b) for a, b in zip(log[key], expected[key], strict=True))
        for key in ("loss", "grad_norm")
    }


def main(names: list[str], ways: Mapping[str, tuple[int, dict[str, Any]]] = WAYS) -> int:
    alone = all_of((names, {}))
    lines = [f"{'':22}{'':20}" + "".join(f"{optim + ': ' + key:>30}" for optim in LIMITS for key in ("loss", "norm"))]
    wrong = 0
    for way, (ranks, options) in ways.items():
        logs = in_world(ranks, "sharding.table:all_of", (names, options), longest=1200)
        for name in names:
            cells = []
            for optim, limit in LIMITS.items():
                far = [apart(rank[name, optim], alone[name, optim]) for rank in logs]
                worst = {key: max(each[key] for each in far) for key in far[0]}
                wrong += any(value > limit for value in worst.values())
                cells += [f"{value:>29.1e}{' ' if value <= limit else '!'}" for value in worst.values()]
            lines.append(f"{way:22}{name:20}" + "".join(cells))
    print("\n".join(lines))
    return wrong
