"""Where the harness keeps things, all outside the checkout.

What is slow to make and the same for every cluster goes to the cache; what belongs to one cluster goes to its state
folder, which is removed with it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.say import ClusterError

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent


def cache_dir() -> Path:
    """Programs, base images and packages: kept from one cluster to the next."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "trainwright" / "cluster"


def state_dir(name: str) -> Path:
    """Everything that belongs to the cluster called ``name``: data, certificates, logs, process ids."""
    return clusters_dir() / checked(name)


def clusters_dir() -> Path:
    """One folder for each cluster of this user that is up."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "trainwright" / "clusters"


def used_by_clusters() -> str:
    """What the nodes of all clusters have mounted, as one text to look a folder's name up in."""
    return "".join(config.read_text() for config in clusters_dir().glob("*/kind.json"))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the cache's own disk, so that what is there can be linked into it; removed afterwards.

    What a killed command left of such folders is removed as well.
    """
    root = cache_dir() / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.iterdir():
        if not Path(f"/proc/{left.name.partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=root) as folder:
        yield Path(folder)


def checked(name: str) -> str:
    """``name``, when every name derived from it (interface, container, folder) is a valid one."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?", name):
        raise ClusterError(f"--name {name!r}: use at most 20 lower-case letters, digits and '-', a letter first")
    return name


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback)
