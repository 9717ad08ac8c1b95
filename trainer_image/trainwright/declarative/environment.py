"""What the Hugging Face libraries read from the environment on import: to be said before that.

A pod's home may be read-only or no home at all, its log is not a terminal, and offline means that no name is asked for.
Whatever the user set stays.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
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
    home = _hub_home(environ)
    scratch = Path(tempfile.gettempdir()) / f"trainwright-cache-{os.getuid()}"
    if not _writable(home) and not _stated(environ):
        environ["HF_HOME"] = str(scratch)
    elif not _writable(Path(environ.get("HF_DATASETS_CACHE") or home / "datasets")):
        environ["HF_DATASETS_CACHE"] = str(scratch / "datasets")  # models may come from a read-only volume, rows not
    if not sys.stderr.isatty():
        for name, value in QUIET.items():
            environ.setdefault(name, value)


def _stated(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name) for name in CACHE_VARIABLES)


def _hub_home(environ: Mapping[str, str]) -> Path:
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(environ.get("HF_HOME") or cache / "huggingface")


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest parent that exists, can be written to."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
