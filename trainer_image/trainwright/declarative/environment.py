"""What the Hugging Face libraries read from the environment on import: to be said before that.

A pod's home may be read-only or no home at all, its log is not a terminal, and offline means that no name is asked for.
Whatever the user set stays.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

CACHE_VARIABLES = ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def prepare_environment(offline: bool, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set caches, quiet and offline mode; call it before transformers and datasets are imported."""
    if offline:
        environ.update(OFFLINE)
    if not any(environ.get(name) for name in CACHE_VARIABLES) and not _writable(Path.home() / ".cache"):
        environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / f"trainwright-cache-{os.getuid()}")
    if not sys.stderr.isatty():
        for name, value in QUIET.items():
            environ.setdefault(name, value)


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest parent that exists, can be written to."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
