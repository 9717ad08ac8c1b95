"""How the arguments of a job spread its model and its batches over ranks: what decides the memory of one rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainwright.arguments import sharding
from trainwright.arguments.zero_memory import optimizer_of, zero_of
from trainwright.contract import UserError
from trainwright.footprint import Estimate, Figures, Layout, Zero, estimate, estimate_zero
from trainwright.rules import LOW_RANK

Arguments = Mapping[str, Any]
"""Those that are given, by the names of :class:`trainwright.TrainingArguments`."""


@dataclass(frozen=True)
class Way:
    """A way to train: what decides the memory of a rank."""

    batch_size: int
    accumulates: bool
    recompute: bool
    layout: Layout | Zero
    adapters: bool = False
    settings: sharding.Fsdp = field(default_factory=sharding.Fsdp)
    """Of FSDP, where the layout shards."""
    sync_each_batch: bool = False

    @property
    def fsdp(self) -> sharding.Fsdp | None:
        """The settings of FSDP, if it shards this model."""
        return self.settings if isinstance(self.layout, Layout) and self.layout.shard > 1 else None


def stated(given: Arguments, ranks: int, per_node: int, hidden_size: int | None = None) -> Way:
    """The way that the arguments state for ``ranks`` processes, ``per_node`` of them on each node.

    Args:
        hidden_size: The width of the model, by which DeepSpeed's ``"auto"`` sizes its buckets.

    Raises:
        UserError: the sizes of a mesh do not give ``ranks``, or what the optimizer or a key of ``deepspeed`` does is
            not counted.
    """
    if (optim := optimizer(given)) in LOW_RANK:
        raise UserError(f"optim: what {optim} keeps of the layers that it projects is not estimated; see describe")
    recompute = bool(given.get("activation_checkpointing") or given.get("gradient_checkpointing"))
    settings = sharding.Fsdp()
    if sharding.is_on(given.get("fsdp")):
        settings = sharding.read(given["fsdp"], given.get("fsdp_config"))
    return Way(
        int(given.get("per_device_train_batch_size", 8)),
        int(given.get("gradient_accumulation_steps", 1)) > 1,
        recompute or settings.activation_checkpointing,
        zero_of(given, ranks, hidden_size) if given.get("deepspeed") else _layout(given, settings, ranks, per_node),
        settings=settings,
        sync_each_batch=_syncs_each_batch(given),
    )


def _layout(given: Arguments, settings: sharding.Fsdp, ranks: int, per_node: int) -> Layout:
    if ranks == 1 or not sharding.is_on(given.get("fsdp")):
        return Layout(ranks)
    sizes = sharding.sizes(settings, given.get("parallelism_config"), ranks, per_node)
    return Layout(ranks, sizes.shard, not settings.reshard_after_forward, settings.cpu_offload)


def _syncs_each_batch(given: Arguments) -> bool:
    config = given.get("accelerator_config")
    said = config.get("gradient_accumulation_kwargs") if isinstance(config, Mapping) else None
    return bool((said or {}).get("sync_each_batch", False))


def optimizer(given: Arguments) -> str:
    """The optimizer that the arguments, or a configuration of DeepSpeed in them, name."""
    if given.get("deepspeed"):
        return optimizer_of(given)[0]
    return str(given.get("optim", "adamw_torch_fused"))


def needed(figures: Figures, way: Way, given: Arguments) -> Estimate:
    """What a rank needs to train this way."""
    if isinstance(way.layout, Zero):
        return estimate_zero(figures, way.layout, *optimizer_of(given), way.accumulates)
    rest = (optimizer(given), str(given.get("optim_args", "")), way.accumulates)
    return estimate(figures, way.layout, *rest, sync_each_batch=way.sync_each_batch)
