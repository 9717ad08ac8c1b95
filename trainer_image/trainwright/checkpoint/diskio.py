"""Durable writes with checksums, and disk errors as one clear line.

Large files are written through :class:`SummedFile`, which computes the checksum of what it writes and has the device
begin at once. Files of other writers are read again: a flush waits for the device and a checksum for the processor, so
one thread computes the checksum of a file while another flushes it.

The checksum is CRC-32, as in torch's files. It detects damage by a crash or a disk, not by an attacker; SHA-256 would
be four times slower (1.6 against 6.7 GiB/s on a machine with SHA instructions).
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, NamedTuple

from trainwright.contract import UserError

_FIXES = {
    errno.ENOSPC: "the disk is full; free space, take a larger volume, or keep fewer checkpoints (save_total_limit)",
    errno.EDQUOT: "the disk quota is used up; free space or keep fewer checkpoints (save_total_limit)",
    errno.EFBIG: "a file grew beyond the size allowed here; raise the limit or save elsewhere",
    errno.EROFS: "it is on a read-only file system; mount it writable or choose another output_dir",
    errno.EACCES: "permission denied; make it writable for this user or choose another output_dir",
    errno.EPERM: "permission denied; make it writable for this user or choose another output_dir",
    errno.ENOTDIR: "it is a file, or lies below one; choose a folder as output_dir",
    errno.EEXIST: "it is a file; choose a folder as output_dir",
}
CHUNK_BYTES = 1 << 20
"""Still in the processor's cache when its checksum is computed after it was written."""
WRITEBACK_BYTES = 32 << 20
"""Written before the device is asked to begin with them."""
_CHECKSUM_LOCK = threading.Lock()
_writing, _checksum_before = 0, True
_RUST_ENOSPC = ("os error 28", "os error 122")


class Sum(NamedTuple):
    """The size and the checksum of what was written to a file."""

    size: int
    crc32: str


Sums = dict[Path, Sum]
"""The files that were written through a :class:`SummedFile`."""


class SummedFile(BufferedWriter):
    """A new file, written from its beginning to its end, whose checksum needs no second reading.

    Args:
        sums: Gets the file's :class:`Sum` when it is closed without an error.

    Attributes:
        error: The first error of a write, which writers in C++ replace by one of their own.
    """

    def __init__(self, path: Path, sums: Sums) -> None:
        self._file = _SummedBytes(path)
        super().__init__(self._file)
        self._path, self._sums = path, sums

    @property
    def error(self) -> OSError | None:
        return self._file.error

    def close(self) -> None:
        super().close()
        if self._file.error is None and self._file.is_sequential:
            self._sums[self._path] = Sum(self._file.size, f"{self._file.checksum:08x}")


class _SummedBytes(FileIO):
    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.error: OSError | None = None
        self.is_sequential, self.checksum, self.size, self._begun = True, 0, 0, 0

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        try:
            for start in range(0, len(content), CHUNK_BYTES):
                self._write_chunk(content[start : start + CHUNK_BYTES])
        except OSError as error:
            self.error = self.error or error
            raise
        return len(content)

    def _write_chunk(self, chunk: memoryview) -> None:
        written = 0
        while written < len(chunk):
            written += super().write(chunk[written:])
        self.checksum = zlib.crc32(chunk, self.checksum)
        self.size += len(chunk)
        if self.size - self._begun >= WRITEBACK_BYTES:
            self._begin_writeback()

    def _begin_writeback(self) -> None:
        """Have the kernel begin to write, so that the flush finds little left; the pages stay in its cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
        self._begun = self.size

    def seek(self, *position: int) -> int:
        self.is_sequential = False
        return super().seek(*position)


def save_summed(value: Any, path: Path, sums: Sums) -> None:
    """Write with ``torch.save``, through a Python file, because torch's own writer does not report a full disk.

    Raises:
        OSError: That of the file, also where torch raises another error after it.
    """
    import torch

    with SummedFile(path, sums) as file:
        try:
            torch.save(value, file)
            file.flush()
        except RuntimeError as error:
            raise file.error or error from error


def flush_tree(folder: Path, known: Mapping[Path, Sum] | None = None) -> dict[str, dict[str, Any]]:
    """Flush every file below ``folder`` to the disk. Returns ``{relative name: {"size", "crc32"}}``.

    Args:
        known: The sums of files that need not be read again.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def checksum_of(path: Path) -> str:
        written = (known or {}).get(path)
        return crc32_of(path) if written is None or written.size != path.stat().st_size else written.crc32

    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="flush") as pool:
        flushes = [pool.submit(_flush_file, path) for path in files]
        sums = list(pool.map(checksum_of, files))
        for flush in flushes:
            flush.result()
    for inner in {path.parent for path in files}:
        flush_folder(inner)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32": checksum}
        for path, checksum in zip(files, sums, strict=True)
    }


def _flush_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not support, or need, this flush
            raise
    finally:
        os.close(descriptor)


def crc32_of(path: Path) -> str:
    """The checksum of a file, as eight hexadecimal digits."""
    checksum, buffer = 0, bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum = zlib.crc32(memoryview(buffer)[:count], checksum)
    return f"{checksum:08x}"


def write_durably(path: Path, text: str) -> None:
    """Replace a small file atomically: a reader finds the old text or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    flush_folder(path.parent)


@contextmanager
def single_checksum() -> Iterator[None]:
    """Disable torch's checksum, which takes half of its time, because the manifest has one of every file.

    The setting is the process's, so it is restored when the last thread that writes has finished.
    """
    import torch

    global _writing, _checksum_before
    with _CHECKSUM_LOCK:
        if _writing == 0:
            _checksum_before = torch.serialization.get_crc32_options()
            torch.serialization.set_crc32_options(False)
        _writing += 1
    try:
        yield
    finally:
        with _CHECKSUM_LOCK:
            _writing -= 1
            if _writing == 0:
                torch.serialization.set_crc32_options(_checksum_before)


@contextmanager
def explained(what: str, aftermath: Callable[[], str]) -> Iterator[None]:
    """Turn a disk error into a :class:`UserError` of one line; other errors are not changed."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fix = _fix_for(error)
        if fix is None:
            raise
        raise UserError(f"{what}: {fix}; {aftermath()}") from error


def _fix_for(error: BaseException | None) -> str | None:
    """How to fix an error or its cause.

    torch's writer raises a second error while it closes the file, and writers in Rust report the errno only as text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FIXES:
            return _FIXES[error.errno]
        if any(code in str(error) for code in _RUST_ENOSPC):
            return _FIXES[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return None
