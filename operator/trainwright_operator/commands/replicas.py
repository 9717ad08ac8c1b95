"""Advice for several nodes: with a replica in each node, weights are gathered within it, not over the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright.arguments import sharding
from trainwright_operator.core.placement.vendor import Placement

_WITHIN_NODES = {"full_shard": "hybrid_shard", "shard_grad_op": "hybrid_shard_zero2"}


def advised(arguments: Mapping[str, Any], placed: Placement) -> str | None:
    """The value of ``fsdp`` that keeps a replica in each node; None where that changes nothing, or sizes are stated.

    Offloaded shards are left alone: those of a whole replica must fit the memory of a host, which no estimate knows.
    """
    fsdp = arguments.get("fsdp")
    if not sharding.is_on(fsdp) or arguments.get("parallelism_config") or nodes(placed) == 1 or placed.per_node == 1:
        return None
    settings = sharding.read(fsdp, arguments.get("fsdp_config"))
    if settings.hybrid or settings.cpu_offload:
        return None
    words = sharding.words(fsdp)
    if not any(word in _WITHIN_NODES for word in words):
        words = ["full_shard", *words]
    return " ".join(_WITHIN_NODES.get(word, word) for word in words)


def nodes(placed: Placement) -> int:
    return placed.nodes * placed.slices


def sentence(value: str, placed: Placement, memory: str) -> str:
    """``memory``: what a rank needs then, or how to find out."""
    return (
        f"spec.trainingArguments.fsdp: {value} keeps a replica in each of the {nodes(placed)} nodes and exchanges less "
        f"over the network (gradients, no weights); {memory}"
    )
