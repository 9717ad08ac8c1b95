"""Write lines.csv for classify-lines.yaml: lines of Python's standard library, each labelled code or prose.

python examples/make_lines_csv.py lines.csv
"""

from __future__ import annotations

import ast
import csv
import random
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

EACH = 2000


def lines_of(file: Path) -> Iterator[tuple[str, str]]:
    """(line, label) of one source file; docstrings and comments are prose."""
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield from ((line.strip(), "prose") for line in (ast.get_docstring(node) or "").splitlines())
    with tokenize.open(file) as stream:
        for token in tokenize.generate_tokens(stream.readline):
            if token.type == tokenize.COMMENT:
                yield token.string.lstrip("#! "), "prose"
            elif token.type == tokenize.NAME:
                yield token.line.split("#")[0].strip(), "code"


def main() -> None:
    rows = {row for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) for row in lines_of(file)}
    chosen = []
    for label in ("code", "prose"):
        candidates = sorted(row for row in rows if row[1] == label and 12 <= len(row[0]) <= 80)
        chosen += random.Random(0).sample(candidates, EACH)
    random.Random(0).shuffle(chosen)
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *chosen])


if __name__ == "__main__":
    main()
