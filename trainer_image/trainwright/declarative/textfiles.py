"""Plain text as rows: whole documents for packing, or one row for each line.

A document is a file. Long files come in pieces that end at a line, so that a corpus of any size streams through little
memory and a validation split finds enough rows; ``first`` and ``last`` mark the pieces at a document's ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from trainwright.contract import DataError
from trainwright.declarative.reach import first_line, refuse

PIECE = 1 << 16
"""Characters of a piece, before the rest of its last line."""
LONGEST_LINE = 1 << 20


def documents(files: list[str], place: str) -> Iterator[dict[str, Any]]:
    """Rows ``{"text", "first", "last"}``: a piece, and whether its document begins and ends with it."""
    for file in files:
        with _opened(file, place) as stream:
            piece, first = _piece(stream), True
            while piece:
                following = _piece(stream)
                yield {"text": piece, "first": first, "last": not following}
                piece, first = following, False


def lines(files: list[str], place: str) -> Iterator[dict[str, Any]]:
    """Rows ``{"text": line}`` without the line's end; blank lines give none."""
    for file in files:
        with _opened(file, place) as stream:
            yield from ({"text": line.rstrip("\n")} for line in stream if not line.isspace())


def _piece(stream: TextIO) -> str:
    text = stream.read(PIECE)
    return text if text.endswith("\n") else text + stream.readline(LONGEST_LINE)


@contextmanager
def _opened(file: str, place: str) -> Iterator[TextIO]:
    import fsspec

    try:
        with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {_undecodable(file)}; save the file as UTF-8 text") from error
    except (OSError, EOFError, ValueError, ImportError) as error:
        raise refuse(error, f"{place}: cannot read {file!r}: {first_line(error)}", DataError) from error


def _undecodable(file: str) -> str:
    """Which line is not UTF-8: the decoder itself only knows a position in its buffer."""
    import fsspec

    with fsspec.open(file, "rb", compression="infer") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{file}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8"
    return f"{file}: is not UTF-8"
