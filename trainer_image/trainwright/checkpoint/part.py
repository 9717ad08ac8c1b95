"""One rank's files of a checkpoint, written in parallel to a temporary folder and flushed before they are committed.

Writes, checksums and flushes wait for different resources. So threads write the pieces of a checkpoint, and each piece
gets its checksum and its flush as soon as it is complete, while others are still being written. Pieces that are written
while training waits are flushed later, with the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainwright.checkpoint.diskio import Sums, flush_tree

Piece = Callable[[Path], Sums | None]
"""Writes some files of a checkpoint into the given empty folder, and returns the sums of those for which it knows them;
no two pieces write files of the same name."""


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
        self._unflushed: list[tuple[int, Sums | None]] = []

    def open(self) -> None:
        """Create the empty folder, removing what a killed writer left there."""
        self.remove()
        self.folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write ``pieces`` in parallel, the first on this thread; returns when the whole part is on the disk."""
        with ThreadPoolExecutor(max(1, len(self._unflushed) + len(pieces)), thread_name_prefix="checkpoint") as pool:
            waiting = [pool.submit(self._flush, *written) for written in self._unflushed]
            self._unflushed = []
            numbered = list(self._numbered(pieces))
            waiting += [pool.submit(self._write_one, *piece) for piece in numbered[1:]]
            for piece in numbered[:1]:
                self._write_one(*piece)
            for written in waiting:
                written.result()

    def write_unflushed(self, pieces: Sequence[Piece]) -> None:
        """Write ``pieces`` one after the other; they are on the disk when :meth:`write` has returned."""
        for number, piece in self._numbered(pieces):
            self._unflushed.append((number, self._create(number, piece)))

    def _numbered(self, pieces: Sequence[Piece]) -> Iterator[tuple[int, Piece]]:
        for piece in pieces:
            yield self._pieces, piece
            self._pieces += 1

    def _write_one(self, number: int, piece: Piece) -> None:
        self._flush(number, self._create(number, piece))

    def _create(self, number: int, piece: Piece) -> Sums | None:
        folder = self.folder / str(number)
        folder.mkdir()
        return piece(folder)

    def _flush(self, number: int, known: Sums | None) -> None:
        for name, entry in flush_tree(self.folder / str(number), known).items():
            if name in self.files:
                raise FileExistsError(f"two pieces of a checkpoint write the same file {name}")
            self.files[name] = {"path": f"{number}/{name}", **entry}
