"""Sets the environment variables that the Hugging Face libraries read on import, before they are imported.

A pod's home may be read-only or missing, its log is not a terminal, and offline means no requests to the hub. Variables
that the user has set are kept.
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
    if not _writable(home) and not _has_cache(environ):
        environ["HF_HOME"] = str(scratch)
    elif not _writable(Path(environ.get("HF_DATASETS_CACHE") or home / "datasets")):
        environ["HF_DATASETS_CACHE"] = str(scratch / "datasets")  # models may be on a read-only volume
    if not sys.stderr.isatty():
        for name, value in QUIET.items():
            environ.setdefault(name, value)


def _has_cache(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name) for name in CACHE_VARIABLES)


def _hub_home(environ: Mapping[str, str]) -> Path:
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(environ.get("HF_HOME") or cache / "huggingface")


def _writable(folder: Path) -> bool:
    """Whether the folder, or its nearest existing parent, is writable."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
