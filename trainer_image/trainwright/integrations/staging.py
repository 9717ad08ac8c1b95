"""Copies of what is being uploaded, by hard links: a checkpoint can be deleted, or a file replaced, meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

STAGED = "_uploads"
"""In the output folder; transformers never uploads what begins with an underscore, and neither do we."""
_SMALL_BYTES = 1 << 20
"""Smaller files are copied, because some of them are written in place."""


def stage(source: Path, output: Path, name: str, keeps: Callable[[str], bool] = lambda name: True) -> Path:
    """``source`` again, at ``output/_uploads/name``; ``keeps`` decides by the names at its top."""
    target = output / STAGED / name
    target.mkdir(parents=True, exist_ok=True)

    def ignored(folder: str, names: Iterable[str]) -> list[str]:
        return [each for each in names if Path(folder) == source and not keeps(each)]

    shutil.copytree(source, target, copy_function=_link, ignore=ignored, dirs_exist_ok=True)
    return target


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.unlink(target)
    try:
        if os.path.getsize(source) < _SMALL_BYTES:
            raise OSError
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the last one
        folder.parent.rmdir()
