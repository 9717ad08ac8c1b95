"""One rank's files of a checkpoint, written aside: several at a time, and on the disk before anybody hears of them.

Writing, summing and flushing wait for different things, so the pieces of a checkpoint are written in threads, and each
is flushed and summed up as soon as it is whole, while the others are being written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainwright.checkpoint.diskio import flush_tree

Piece = Callable[[Path], None]
"""Writes some files of a checkpoint into the empty folder that it is given; no two pieces write the same names."""


class Part:
    """The folder that a rank writes its files into, until the leader moves them to their place.

    Attributes:
        files: Name in the checkpoint -> its path below ``folder``, size and checksum, once it is on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self._pieces = 0

    def open(self) -> None:
        """An empty folder, whatever a killed writer left there."""
        self.remove()
        self.folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write ``pieces`` side by side, the first on this thread; returns when all of them are on the disk."""
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
