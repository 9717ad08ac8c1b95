"""Bytes that are really on the disk, and one clear line when they cannot be.

Flushing waits for the device and summing for the processor, so each file is summed up in one thread while another waits
for its flush. The sum is CRC-32, as in the files that torch writes: it shall tell what a crash or a disk damaged, not
withstand an attacker, and SHA-256 is four times slower (1.6 against 6.7 GiB/s on a machine with SHA instructions).
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainwright.contract import UserError

_MENDS = {
    errno.ENOSPC: "the disk is full; free space, take a larger volume, or keep fewer checkpoints (save_total_limit)",
    errno.EDQUOT: "the disk quota is used up; free space or keep fewer checkpoints (save_total_limit)",
    errno.EFBIG: "a file grew beyond the size allowed here; raise the limit or save elsewhere",
    errno.EROFS: "it is on a read-only file system; mount it writable or choose another output_dir",
    errno.EACCES: "permission denied; make it writable for this user or choose another output_dir",
    errno.EPERM: "permission denied; make it writable for this user or choose another output_dir",
    errno.ENOTDIR: "it is a file, or lies below one; choose a folder as output_dir",
    errno.EEXIST: "it is a file; choose a folder as output_dir",
}
_RUST_ENOSPC = ("os error 28", "os error 122")


def flush_tree(folder: Path) -> dict[str, dict[str, Any]]:
    """Flush every file below ``folder`` to the disk. Returns ``{relative name: {"size", "crc32"}}``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="flush") as pool:
        flushes = [pool.submit(_flush_file, path) for path in files]
        sums = list(pool.map(crc32_of, files))
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
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder, and need not
            raise
    finally:
        os.close(descriptor)


def crc32_of(path: Path) -> str:
    """Eight hexadecimal digits."""
    checksum, buffer = 0, bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum = zlib.crc32(memoryview(buffer)[:count], checksum)
    return f"{checksum:08x}"


def write_durably(path: Path, text: str) -> None:
    """Replace a small file so that a reader finds the old text or the new one, never half of either."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    flush_folder(path.parent)


@contextmanager
def explained(what: str, aftermath: Callable[[], str]) -> Iterator[None]:
    """Turn a failure of the disk into a :class:`UserError` of one line; any other error passes as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        mend = _mend(error)
        if mend is None:
            raise
        raise UserError(f"{what}: {mend}; {aftermath()}") from error


def _mend(error: BaseException | None) -> str | None:
    """What to do about an error or about the one behind it.

    torch's writer fails a second time while it closes the file, and writers in Rust leave of the errno only its words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MENDS:
            return _MENDS[error.errno]
        if any(code in str(error) for code in _RUST_ENOSPC):
            return _MENDS[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return None
