"""README and docs/: links lead somewhere, pages are listed, manifests in them are right, commands in them exist."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainwright
from trainwright_operator.api import crd, manifest, names
from trainwright_operator.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(DOCS.glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
UNKNOWN = "is not a field"
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its code, in which a bracket is no link and ``#`` no heading."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of the headings as GitHub makes them."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(next(one for one in (slug, *(f"{slug}-{n}" for n in range(1, 99))) if one not in found))
    return found


def broken(page: Path) -> Iterator[str]:
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            yield f"{target}: there is no such file"
        elif anchor and anchor not in anchors(there):
            yield f"{target}: there is no such heading; {', '.join(sorted(anchors(there)))}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.-])(?:charts|examples|docs|tests)/[\w./-]*\w", page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


HOUSE = (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md")
TRAINER, OPERATOR = ROOT / "trainer_image", ROOT / "operator"
PACKAGES = (TRAINER / "trainwright", OPERATOR / "trainwright_operator", TRAINER, OPERATOR, ROOT)


@pytest.mark.parametrize("page", HOUSE, ids=title)
def test_rooms_and_modules_that_are_named_are_there(page: Path) -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", page.read_text(encoding="utf-8")))
    lost = [name for name in sorted(named) if not any((package / name).exists() for package in PACKAGES)]
    assert named
    assert lost == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A, `b --c`\n[a](#a-b---c) [b](#b) [c](page.md#a) [d](none.md) [e](https://x.y)\n```\n[f](f.md)\n```\n"
    )
    assert [one.partition(":")[0] for one in broken(page)] == ["#b", "page.md#a", "none.md"]


def test_every_page_is_listed() -> None:
    listed = set(LINK.findall(prose(INDEX)))
    assert {page.name for page in DOCS.glob("*.md")} - {INDEX.name} <= listed


def test_the_api_reference_is_of_this_source() -> None:
    """`make manual` writes it."""
    made = runpy.run_path(str(DOCS / "reference.py"))["page"]()
    assert made == (DOCS / "api.md").read_text(encoding="utf-8"), "run `make manual`"


def test_the_api_reference_has_every_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [
        name for name in trainwright.__all__ if not re.search(rf"^### `{name}`$|.*, `{name}`|: `{name}`", page, re.M)
    ] == []


def test_the_site_has_every_page() -> None:
    """`make docs` builds it and finds what leads nowhere by itself."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert {page for page in leaves(navigation) if "/" not in page} == {page.name for page in DOCS.glob("*.md")}


def leaves(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
        return
    for one in navigation if isinstance(navigation, list) else navigation.values():
        yield from leaves(one)


# Manifests and commands


def fenced(*languages: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                yield page, text


def as_job(content: dict[str, Any]) -> dict[str, Any]:
    """A part of a manifest that a page shows, in the place where it belongs."""
    spec = content["spec"] if set(content) == {"spec"} else content
    return {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "metadata": {"name": "a"}, "spec": spec}


def test_manifests_are_right() -> None:
    """Whole ones are valid; parts of one name only fields that there are."""
    wrong, whole, parts = [], 0, 0
    fields = set(crd.SCHEMAS[names.JOB_KIND]()["properties"]["spec"]["properties"]) | {"spec"}
    for page, text in fenced("yaml"):
        for content in (document.content for document in manifest.read(text, title(page))):
            if content.get("apiVersion") == names.API_VERSION:
                whole += 1
                wrong += [f"{title(page)}: {problem}" for problem in crd.problems(content)]
            elif set(content) <= fields:
                parts += 1
                wrong += [f"{title(page)}: {one}" for one in crd.problems(as_job(content)) if UNKNOWN in str(one)]
    assert not wrong
    assert whole >= 2
    assert parts >= 3
    assert any(UNKNOWN in str(one) for one in crd.problems(as_job({"podTemplate": {"imge": "x"}})))


def commands() -> Iterator[tuple[Path, list[str]]]:
    for page, text in fenced("", "sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("trainwright "):
                yield page, shlex.split(line, comments=True)


def test_commands_of_ours_exist(capsys: pytest.CaptureFixture[str]) -> None:
    parser, wrong = build_parser(), []
    for page, (_, *arguments) in commands():
        try:
            parser.parse_args(arguments)
        except SystemExit as end:
            if end.code:  # not of --help
                wrong.append(f"{title(page)}: trainwright {shlex.join(arguments)}: {capsys.readouterr().err}")
    assert not wrong
