"""Print what the project's extras need, one requirement a line: `requirements.py PYPROJECT EXTRA...`.

An image installs these in a layer of their own, which stays as it is while only our code changes.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(pyproject: Path, extras: list[str]) -> None:
    """The dependencies that every use has, and those of the extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    print("\n".join(project["dependencies"] + [line for extra in extras for line in optional[extra]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
