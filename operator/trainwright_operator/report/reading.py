"""Reads the log of a run row by row, from a trainer's state or from printed lines, without holding it in memory."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

_CHUNK = 1 << 18
_NUMBER_ENDS = 3
"""A number is whole when this many characters follow it."""
_SPACE = re.compile(r"[ \t\r\n]*")
_RANK = re.compile(r"^\[rank (\d+)\] ?")
_DECODER = json.JSONDecoder()


class Torn(ValueError):
    """The file ends in the middle, or is not a trainer's state."""


class StateReader:
    """Reads ``trainer_state.json``: :meth:`rows` are the entries of the log, afterwards ``fields`` has the rest.

    A file that ends in the middle gives the rows before that; ``torn`` then says so.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self.fields: dict[str, Any] = {}
        self.torn = False

    def rows(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._object()
        except Torn:
            self.torn = True

    def _object(self) -> Iterator[dict[str, Any]]:
        self._expect("{")
        while self._peek() != "}":
            name = self._value()
            self._expect(":")
            if name == "log_history" and self._peek() == "[":
                yield from self._array()
            else:
                self.fields[str(name)] = self._value()
            if self._peek() == ",":
                self._at += 1

    def _array(self) -> Iterator[dict[str, Any]]:
        self._expect("[")
        while self._peek() != "]":
            row = self._value()
            if isinstance(row, dict):
                yield row
            if self._peek() == ",":
                self._at += 1
        self._at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise Torn from None
                continue
            is_number = isinstance(value, int | float)
            if is_number and len(self._text) - end < _NUMBER_ENDS and self._more():  # it may go on, as in 1e-05
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        """The next character that is no space."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr] # it matches nothing, too
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise Torn

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise Torn
        self._at += 1

    def _more(self) -> bool:
        """Read on; False at the end of the file, which changes nothing."""
        chunk = self._file.read(_CHUNK)
        if chunk:
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)


def rows_of_lines(lines: Iterable[str], rank: int = 0) -> Iterator[dict[str, Any]]:
    """The rows that a trainer printed, among other lines; a line that is torn is left out."""
    for line in lines:
        prefix = _RANK.match(line)
        if prefix is not None:
            if int(prefix[1]) != rank:
                continue
            line = line[prefix.end() :]
        if row := _row(line):
            yield row


def _row(line: str) -> dict[str, Any]:
    """The metrics of a printed dict; empty for any other line."""
    line = line.strip()
    if not (line.startswith("{'") and line.endswith("}")):
        return {}
    try:
        read = json.loads(line.replace("'", '"'))
    except ValueError:
        try:
            read = ast.literal_eval(line)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return {}
    return read if isinstance(read, dict) and "epoch" in read else {}


def rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from rows_of_lines(file)


def rows_of_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """One object a line; a line that is torn is left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
