"""Hold what `python -m build` made against what a user needs of it: `python tests/package.py dist`.

The sdist must have what the README leads to, and no tests. The wheel goes into a fresh environment, where the commands
must work outside this checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
SDIST = {
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "SECURITY.md",
    "charts",
    "constraints.txt",
    "crds",
    "docs",
    "examples",
    "mkdocs.yml",
    "operator",
    "pyproject.toml",
    "trainer_image",
}
"""The top of the sdist; hatchling adds .gitignore, PKG-INFO and pyproject.toml."""
FILES = {
    "sdist": {"charts/trainwright/files/crds/trainwright.dev_trainingjobs.yaml", "trainer_image/Dockerfile"},
    "wheel": {
        "trainwright/py.typed",
        "trainwright/__init__.pyi",
        "trainwright/compat/aliases/launcher.py",
        "trainwright_operator/py.typed",
    },
}
"""What was easily left out: a link, a file that is no Python, a folder that is no package."""
EXAMPLE = str(ROOT / "examples" / "cpu.yaml")
COMMANDS = (
    ("trainwright", "--version"),
    ("trainwright", "--help"),
    ("kubectl-trainwright", "--help"),
    ("trainwright", "validate", EXAMPLE),
    ("trainwright", "plan", EXAMPLE),
)


def main(folder: Path) -> None:
    """Check the one sdist and the one wheel of the folder; what is wrong ends the program with one line."""
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    in_wheel = set(ZipFile(wheel).namelist())
    metadata = next(name.partition("/")[0] for name in in_wheel if ".dist-info/" in name)
    agree("the top of the sdist", tops(in_sdist), SDIST)
    agree("the top of the wheel", tops(in_wheel), {"trainwright", "trainwright_operator", metadata})
    for kind, names in (("sdist", in_sdist), ("wheel", in_wheel)):
        agree(f"the {kind}", names & FILES[kind], FILES[kind])
    try_wheel(wheel.resolve())


def tops(names: set[str]) -> set[str]:
    return {name.partition("/")[0] for name in names}


def agree(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        sys.exit(f"{what} lacks {sorted(wanted - found)} and has, beside what belongs there, {sorted(found - wanted)}")


def try_wheel(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        binaries = Path(scratch, "bin")
        run = {"check": True, "cwd": scratch, "env": environment, "stdout": subprocess.DEVNULL}
        subprocess.run([binaries / "pip", "install", "--quiet", "--disable-pip-version-check", wheel], **run)
        for program, *arguments in COMMANDS:
            subprocess.run([binaries / program, *arguments], **run)
            print("works from the wheel:", program, *arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
