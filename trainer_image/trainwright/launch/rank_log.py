"""The log of a pod with several ranks: each line starts with its rank.

The ranks write into pipes. One thread copies whole lines from the pipes to the pod's streams, so lines of two ranks
never mix. Pipes rather than followed files, because they do not grow with the run, and a line appears at once.
"""

from __future__ import annotations

import os
import re
import selectors
import sys
import threading
from pathlib import Path

_CHUNK = 65536
_LONGEST_LINE = 65536
_WAKE_SECONDS = 0.2
_LINE_ENDS = re.compile(rb"(?<=\n)|(?<=\r)(?!\n)")  # progress bars end their lines with a carriage return


class RankLog:
    """The pipes for the output of the ranks, and the thread that reads them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._closing = False
        self._thread = threading.Thread(target=self._copy, name="rank log", daemon=True)

    def pipe(self, rank: int, name: str) -> str:
        """The path to open as the rank's ``name``, stdout or stderr."""
        path = self._folder / f"{name}-{rank}"
        if path.exists():  # no rank has opened it: those that could not be forked are spawned
            return str(path)
        os.mkfifo(path, 0o600)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        target = (sys.stdout if name == "stdout" else sys.stderr).fileno()
        self._selector.register(reader, selectors.EVENT_READ, Lines(f"[rank {rank}] ".encode(), target))
        return str(path)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Copies what is left, including an unfinished last line. Call when the ranks have ended."""
        self._closing = True
        if self._thread.is_alive():
            self._thread.join()

    def _copy(self) -> None:
        while (ready := self._selector.select(_WAKE_SECONDS)) or not self._closing:
            for key, _ in ready:
                self._read(key.fd, key.data)
        for key in list(self._selector.get_map().values()):
            key.data.end()

    def _read(self, reader: int, lines: Lines) -> None:
        chunk = os.read(reader, _CHUNK)
        if chunk:
            lines.add(chunk)
        else:  # the rank and the processes that it started have ended
            self._selector.unregister(reader)
            lines.end()


class Lines:
    """Cuts a stream into lines and writes each with a prefix to a file descriptor."""

    def __init__(self, prefix: bytes, target: int) -> None:
        self._prefix, self._target = prefix, target
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        *whole, self._rest = _LINE_ENDS.split(self._rest + chunk)
        if len(self._rest) > _LONGEST_LINE:
            whole, self._rest = [*whole, self._rest + b"\n"], b""
        if whole:
            self._write(b"".join(self._prefix + line for line in whole))

    def end(self) -> None:
        if self._rest:
            self._write(self._prefix + self._rest + b"\n")
            self._rest = b""

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._target, data) :]
