"""The shape of a TPU slice: the chips, hosts and devices of a topology.

The same topology can have one host or several (``2x4`` on machines of 8 or of 4 chips), so a pool has to give the chips
per host. A generation determines only what is the same for all of its machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

LABEL_ACCELERATOR = "cloud.google.com/gke-tpu-accelerator"
LABEL_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
LABEL_NODE_POOL = "cloud.google.com/gke-nodepool"
"""On GKE a slice of several hosts is exactly one node pool: all its nodes have the same value."""


@dataclass(frozen=True)
class Generation:
    """Properties that all machines of a TPU generation share."""

    accelerator: str
    chips_per_host: tuple[int, ...]
    axes: int
    devices_per_chip: int = 1
    """Devices per chip as TorchTPU sees them; each has its own process."""


GENERATIONS: Mapping[str, Generation] = {
    "v5e": Generation("tpu-v5-lite-podslice", (1, 4, 8), axes=2),
    "v5p": Generation("tpu-v5p-slice", (4,), axes=3),
    "v6e": Generation("tpu-v6e-slice", (1, 4, 8), axes=2),
    "v7x": Generation("tpu7x", (4,), axes=3, devices_per_chip=2),
}


class ShapeError(ValueError):
    """No set of hosts has this topology; the message shows the arithmetic."""


@dataclass(frozen=True)
class Slice:
    """One slice of a TPU pool: ``hosts`` machines with ``chips`` chips each, and ``devices`` devices per chip."""

    topology: str
    hosts: int
    chips: int
    devices: int = 1

    @staticmethod
    def of(topology: str, chips_per_host: int, devices: int = 1) -> Slice:
        """Raises :class:`ShapeError` if the chips do not fill whole hosts."""
        total = prod(axes(topology))
        if total > chips_per_host and total % chips_per_host:
            raise ShapeError(arithmetic(topology, chips_per_host))
        return Slice(topology, max(1, total // chips_per_host), min(total, chips_per_host), devices)

    def explain(self) -> str:
        """``topology 4x4 has 16 chips, 16 / 8 per host = 2 hosts``"""
        return arithmetic(self.topology, self.chips)


def arithmetic(topology: str, chips_per_host: int) -> str:
    """The number of hosts of a topology, as a calculation."""
    total = prod(axes(topology))
    hosts, remainder = divmod(total, chips_per_host)
    fix = f", remainder {remainder}; correct topology or chipsPerHost" if remainder else ""
    return (
        f"topology {topology} has {counted(total, 'chip')}, "
        f"{total} / {chips_per_host} per host = {counted(hosts, 'host')}{fix}"
    )


def axes(topology: str) -> tuple[int, ...]:
    """``4x4`` as ``(4, 4)``."""
    return tuple(int(axis) for axis in topology.split("x"))


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def generation_of(generation: str | None, node_selector: Mapping[str, str]) -> Generation | None:
    """The generation of the pool's machines: from ``generation``, else from GKE's label."""
    if generation:
        return GENERATIONS[generation]
    accelerator = node_selector.get(LABEL_ACCELERATOR)
    return next((one for one in GENERATIONS.values() if one.accelerator == accelerator), None)
