"""The small interface that every cluster of the tests has, whatever it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Cluster(Protocol):
    """A cluster by its name. ``up`` and ``down`` are idempotent, and may follow an interrupted one."""

    name: str
    kubeconfig: Path
    logs: Path

    def up(self) -> None:
        """Start what does not run yet, and return when the cluster is ready."""

    def down(self) -> None:
        """Remove every trace: processes, mounts, interfaces, networks, files."""

    def collect_logs(self) -> Path:
        """The folder with the logs of all programs, fetched where they are not written there."""

    def status(self) -> list[str]:
        """Lines for a person: what runs, how much memory it holds."""
