"""What the release workflow decides and rewrites, so that it can be run and tested without the workflow.

release.py check TAG          the tag is the version's, and the changelog has a dated section for it
release.py notes              that section
release.py pypi REPOSITORY    rewrite README.md and pyproject.toml: links that lead somewhere from PyPI too
release.py chart REGISTRY     rewrite the chart's values: the images are those of the registry
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s]+)(?=\))")


class ReleaseError(Exception):
    """The checkout is not ready to be released; the message says what to change."""


def version(root: Path) -> str:
    """The version of every part, read without importing anything."""
    text = (root / "trainer_image/trainwright/__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', text, re.M)[0]


def check(root: Path, tag: str) -> str:
    """The version, where the tag names it and the changelog dates it."""
    expected = f"v{version(root)}"
    if tag != expected:
        raise ReleaseError(f"the tag is {tag} and the version {expected[1:]}: tag {expected}, or change __version__")
    if not re.match(r"\d{4}-\d{2}-\d{2}$", _section(root)[0]):
        raise ReleaseError(f"CHANGELOG.md does not date {expected[1:]}: `## [{expected[1:]}] - YYYY-MM-DD`")
    return version(root)


def notes(root: Path) -> str:
    """What the changelog says about the version, without the heading."""
    return _section(root)[1].strip()


def pypi(root: Path, repository: str) -> str:
    """Links of the README lead to the repository at the version's tag; the project's page names the repository."""
    readme, pyproject = root / "README.md", root / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), repository, f"v{version(root)}", root), "utf-8")
    urls = {
        "Repository": repository,
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    table = "\n".join(["[project.urls]", *(f'{name} = "{url}"' for name, url in urls.items())])
    text = pyproject.read_text(encoding="utf-8")
    pyproject.write_text(text.replace("[project.scripts]", f"{table}\n\n[project.scripts]", 1), "utf-8")
    return f"README.md and pyproject.toml point to {repository}"


def absolute(markdown: str, repository: str, tag: str, root: Path) -> str:
    """The page with each relative link made absolute; a folder's page is a ``tree`` of the repository."""

    def address(link: re.Match[str]) -> str:
        path = link[0].partition("#")[0]
        return f"{repository}/{'tree' if (root / path).is_dir() else 'blob'}/{tag}/{link[0]}"

    return LINK.sub(address, markdown)


def chart(root: Path, registry: str) -> str:
    """The chart's default images are those of the registry, at the version."""
    values = root / "charts/trainwright/values.yaml"
    text = values.read_text(encoding="utf-8")
    trainer = f"{registry}/trainer:{version(root)}-cpu"
    for old, new in (
        ("  repository: trainwright/operator\n", f"  repository: {registry}/operator\n"),
        (
            'trainerImage: ""              # default: trainwright/trainer:<appVersion>-cpu\n',
            f"trainerImage: {trainer}\n",
        ),
    ):
        if old not in text:
            raise ReleaseError(f"{values.name} has no line {old.strip()!r}")
        text = text.replace(old, new)
    values.write_text(text, encoding="utf-8")
    return f"the chart's images are those of {registry}"


def _section(root: Path) -> tuple[str, str]:
    """The date and the text of the version's section in the changelog; both empty where there is none."""
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(version(root))}\](?: - ([^\n]*))?\n(.*?)(?=^## |^\[|\Z)"
    found = re.search(heading, changelog, re.M | re.S)
    return (found[1] or "", found[2]) if found else ("", "")


COMMANDS: dict[str, Callable[..., str]] = {"check": check, "notes": notes, "pypi": pypi, "chart": chart}


def main(command: str, *arguments: str) -> None:
    """Run one command on this checkout."""
    try:
        print(COMMANDS[command](ROOT, *arguments))
    except ReleaseError as error:
        sys.exit(f"release.py: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
