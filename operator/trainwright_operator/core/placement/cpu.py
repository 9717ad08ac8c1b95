"""Nodes without accelerators: a rank computes on cores of its pod."""

from __future__ import annotations

from trainwright_operator.core.placement.vendor import Layout, Vendor


class Cpu(Vendor):
    def default_requests(self, layout: Layout) -> dict[str, str]:
        """A core for each rank."""
        return {"cpu": str(layout.ranks)}


VENDOR = Cpu("cpu")
