"""Why a file could not be read, in one line with the file and the line: looked for only after a reader has failed.

The readers of ``datasets`` name neither. A second, slow pass over the files finds the first line that breaks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable

from trainwright.contract import DataError, UserError
from trainwright.declarative.reach import Unreachable, causes, first_line, refuse


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
