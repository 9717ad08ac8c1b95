"""Why a file could not be read: one message with the file and the line number, after a reader has failed.

The readers of ``datasets`` report neither, so a second, slow pass over the files finds the first invalid line.

It distinguishes errors in the data, which end a job, from errors of the network, which are worth a retry.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator

from trainwright.contract import DataError, UserError


def explain(error: BaseException, format: str, files: Iterable[str], place: str) -> Exception:
    """The :class:`DataError` for an error of a reader, or :class:`Unreachable` if it came from the network."""
    for cause in causes(error):
        if isinstance(cause, UserError | Unreachable):
            return cause
    for file in files:
        try:
            if found := _problem(file, format):
                return DataError(f"{place}: {file}{found}; fix or remove it")
        except (OSError, EOFError) as unreadable:
            return error_for(unreadable, f"{place}: cannot read {file!r}: {first_line(unreadable)}", DataError)
    innermost = list(causes(error))[-1]
    return error_for(error, f"{place}: cannot be read as {format}: {first_line(innermost)}", DataError)


def _problem(file: str, format: str) -> str | None:
    """``", line 3: ..."`` or ``": ..."`` if this file is invalid, else None."""
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
            return f", line {rows.line_num}: has {len(row)} fields, but the header has {width}"
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
"""Exceptions of the HTTP and storage clients, by name, because the clients may not be installed."""
BUSY = frozenset({429, 500, 502, 503, 504})


class Unreachable(ConnectionError):
    """A hub or store cannot be reached at present. Not a :class:`UserError`, because a retry may succeed."""


def error_for(error: BaseException, message: str, kind: type[UserError] = UserError) -> Exception:
    """The exception to raise for ``error``: a ``kind``, or :class:`Unreachable` for an error of the network."""
    if os.environ.get("HF_HUB_OFFLINE") != "1" and any(_is_network_error(cause) for cause in causes(error)):
        return Unreachable(message)
    return kind(message)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, back to the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if isinstance(seen, UserError) else seen.__context__)


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_network_error(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return NETWORK.fullmatch(type(error).__name__) is not None or status in BUSY
