"""How much disk a cluster takes, asked for before anything is made: what is full in the middle costs half an hour."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from cluster import paths, programs
from cluster.say import ClusterError, say

GO_CACHES_GB, PROGRAMS_GB, IMAGES_GB, NODES_GB = 11, 1, 8, 3
ONE_MORE_IMAGE_GB = 13
"""In Docker and its build cache, in the registry, and unpacked on each of two nodes."""


def check() -> None:
    """Say what is needed; an error when less than that is free."""
    missing = bool(programs.missing(programs.NODES))
    wanted = {
        paths.cache_dir(): (PROGRAMS_GB if missing else 0)
        + (0 if (paths.cache_dir() / "registry").exists() else IMAGES_GB)
        + NODES_GB,
    }
    if missing and (go := _go_cache()):
        wanted[go] = wanted.get(go, 0) + GO_CACHES_GB
    _ask(wanted)


def check_for_more() -> None:
    """The same before an image is brought that a cluster does not have from its start."""
    _ask({paths.cache_dir(): ONE_MORE_IMAGE_GB})


def _ask(wanted: dict[Path, int]) -> None:
    for folder, needed in _by_disk(wanted).items():
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        say(f"needs {needed} GB of disk in {folder}, {free:.0f} GB are free")
        if free < needed:
            raise ClusterError(
                f"{needed} GB of disk are needed in {folder}, {free:.0f} are free: make room, "
                "or set XDG_CACHE_HOME (and GOCACHE) to a larger disk"
            )


def _by_disk(wanted: dict[Path, int]) -> dict[Path, int]:
    """Folders of one disk have one sum, under the first one's name."""
    disks: dict[int, Path] = {}
    sums: dict[Path, int] = {}
    for folder, needed in wanted.items():
        first = disks.setdefault(_existing(folder).stat().st_dev, folder)
        sums[first] = sums.get(first, 0) + needed
    return sums


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there already."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _go_cache() -> Path | None:
    go = shutil.which("go")
    return (
        Path(subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip())
        if go
        else None
    )
