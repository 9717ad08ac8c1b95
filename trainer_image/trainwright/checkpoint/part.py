"""One rank's files of a checkpoint, written in parallel to a temporary folder and flushed before they are committed.

Writes, checksums and flushes wait for different resources. So threads write the pieces of a checkpoint, and each piece
gets its checksum and its flush as soon as it is complete, while others are still being written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainwright.checkpoint.diskio import flush_tree

Piece = Callable[[Path], None]
"""Writes some files of a checkpoint into the given empty folder; no two pieces write files of the same name."""


class Part:
    """The folder into which a rank writes its files, until the leader moves them into the checkpoint.

    Attributes:
        files: Name in the checkpoint -> path below ``folder``, size and checksum, once the file is on the disk.
        failure: Why this rank could not write, if it must tell the others before they continue.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self.failure: Exception | None = None
        self._pieces = 0

    def open(self) -> None:
        """Create the empty folder, removing what a killed writer left there."""
        self.remove()
        self.folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write ``pieces`` in parallel, the first on this thread; returns when all of them are on the disk."""
        if not pieces:
            return
        numbers = range(self._pieces, self._pieces + len(pieces))
        self._pieces += len(pieces)
        first, *others = zip(numbers, pieces, strict=True)
        with ThreadPoolExecutor(max(1, len(others)), thread_name_prefix="checkpoint") as pool:
            waiting = [pool.submit(self._write_one, *piece) for piece in others]
            self._write_one(*first)
            for written in waiting:
                written.result()

    def _write_one(self, number: int, piece: Piece) -> None:
        folder = self.folder / str(number)
        folder.mkdir()
        piece(folder)
        for name, entry in flush_tree(folder).items():
            if name in self.files:
                raise FileExistsError(f"two pieces of a checkpoint write the same file {name}")
            self.files[name] = {"path": f"{number}/{name}", **entry}
