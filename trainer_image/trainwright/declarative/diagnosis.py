"""Why a file could not be read, in one line with the file and the line: looked for only after a reader has failed.

The readers of ``datasets`` name neither. A second, slow pass over the files finds the first line that breaks.

A mistake and a network that is down are told apart: the one ends a job for good, the other is worth another attempt.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator

from trainwright.contract import DataError, UserError


def explain(error: BaseException, format: str, files: Iterable[str], place: str) -> Exception:
    """The :class:`DataError` to raise for what a reader raised, or that a store could not be reached."""
    for cause in causes(error):
        if isinstance(cause, UserError | Unreachable):
            return cause
    for file in files:
        try:
            if found := _problem(file, format):
                return DataError(f"{place}: {file}{found}; mend or remove it")
        except (OSError, EOFError) as unreadable:
            return refuse(unreadable, f"{place}: cannot read {file!r}: {first_line(unreadable)}", DataError)
    innermost = list(causes(error))[-1]
    return refuse(error, f"{place}: cannot be read as {format}: {first_line(innermost)}", DataError)


def _problem(file: str, format: str) -> str | None:
    """``", line 3: ..."`` or ``": ..."`` when this file is the culprit."""
    search = {"json": _json_problem, "csv": _csv_problem, "parquet": _parquet_problem}.get(format)
    if search is None:
        return None
    try:
        return _in_file(file, search)
    except UnicodeDecodeError as error:
        return f": is not UTF-8 ({error.reason} at byte {error.start})"


def _in_file(file: str, search: Callable[[str], str | None]) -> str | None:
    import fsspec

    if search is _parquet_problem:
        return search(file)
    with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer", newline="") as stream:
        text = stream.read()
    return ": is empty" if not text.strip() else search(text)


def _json_problem(text: str) -> str | None:
    if text.lstrip().startswith("["):
        return _array_problem(text)
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            return f", line {number}: is not JSON ({error.msg} at column {error.colno})"
        if not isinstance(row, dict):
            return f", line {number}: is not a JSON object with a key for each column"
    return None


def _array_problem(text: str) -> str | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f", line {error.lineno}: is not JSON ({error.msg} at column {error.colno})"
    return None


def _csv_problem(text: str) -> str | None:
    rows = csv.reader(text.splitlines(keepends=True), delimiter="\t" if _tabbed(text) else ",")
    width = 0
    for row in rows:
        width = width or len(row)
        if row and len(row) > width:
            return f", line {rows.line_num}: has {len(row)} fields where the header has {width}"
    return None


def _tabbed(text: str) -> bool:
    header = text.split("\n", 1)[0]
    return header.count("\t") > header.count(",")


def _parquet_problem(file: str) -> str | None:
    import fsspec
    import pyarrow.parquet as parquet

    with fsspec.open(file, "rb") as stream:
        try:
            parquet.ParquetFile(stream)
        except (OSError, ValueError) as error:
            return f": is not a parquet file ({str(error).splitlines()[0]})"
    return None


NETWORK = re.compile(
    r"\w*Connect\w*Error|\w*Timeout(Error)?|ReadError|ProxyError|RemoteProtocolError|ServerDisconnectedError|SSLError"
    r"|LocalEntryNotFoundError|gaierror"
)
"""Exceptions of the HTTP and storage clients, by name: none of them needs to be installed."""
BUSY = frozenset({429, 500, 502, 503, 504})


class Unreachable(ConnectionError):
    """A hub or store that cannot be reached now. No :class:`UserError`: another attempt may find it."""


def refuse(error: BaseException, message: str, kind: type[UserError] = UserError) -> Exception:
    """What to raise for ``error``: a ``kind``, or :class:`Unreachable` where the network is to blame."""
    if os.environ.get("HF_HUB_OFFLINE") != "1" and any(_of_the_network(cause) for cause in causes(error)):
        return Unreachable(message)
    return kind(message)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what led to it, back to the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if isinstance(seen, UserError) else seen.__context__)


def first_line(error: BaseException) -> str:
    """The first line of its message, or its name when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _of_the_network(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return NETWORK.fullmatch(type(error).__name__) is not None or status in BUSY
