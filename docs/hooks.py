"""Hooks of MkDocs: pages link to files beside docs/, as they do on GitHub, and the site takes those along."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BESIDE = "project"
"""Where in the site the files lie that are not in docs/."""
PARTS = re.compile(r"^```.*?^```|`[^`\n]*`|(?<=\]\()[^)\s]+(?=\))", re.M | re.S)
"""Code, which stays as it is, and the targets of links."""


def on_files(files: Any, config: Any) -> Any:
    for path in sorted(beside({DOCS / page.src_uri for page in files.documentation_pages()})):
        files.append(File.generated(config, address(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Each link as the site has it; one to a folder leads to none, and leaves its words."""
    uri = page.file.src_uri
    here = ROOT / uri.removeprefix(f"{BESIDE}/") if uri.startswith(f"{BESIDE}/") else DOCS / uri

    def led(found: re.Match[str]) -> str:
        target = found[0]
        path, hash_, anchor = target.partition("#")
        there = (here.parent / path).resolve()
        if target.startswith("`") or not path or ":" in path or not there.is_file():
            return target
        return posixpath.relpath(address(there), posixpath.dirname(uri) or ".") + hash_ + anchor

    return re.sub(r"\[([^\]]+)\]\((?:examples|docs)/?\)", r"\1", PARTS.sub(led, markdown))


def beside(pages: set[Path]) -> set[Path]:
    """The files outside docs/ that these pages link to, and those that such pages link to in turn."""
    found: set[Path] = set()
    new = pages
    while new:
        linked = {there for page in new if page.suffix == ".md" for there in targets(page)}
        new = {there for there in linked if not there.is_relative_to(DOCS)} - found
        found |= new
    return found


def targets(page: Path) -> Iterator[Path]:
    for link in PARTS.findall(page.read_text(encoding="utf-8")):
        there = (page.parent / link.partition("#")[0]).resolve()
        if not link.startswith("`") and ":" not in link and there.is_file():
            yield there


def address(path: Path) -> str:
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"{BESIDE}/{path.relative_to(ROOT).as_posix()}"
