"""What the release workflow decides and rewrites, on a copy of the files that it touches."""

from __future__ import annotations

import re
import runpy
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainwright

ROOT = Path(__file__).parents[2]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / ".github" / "release.py"))
VERSION = trainwright.__version__
REPOSITORY = "https://github.example/someone/trainwright"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "charts/trainwright/values.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    package = tmp_path / "trainer_image" / "trainwright"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "trainer_image/trainwright/__init__.py", package)
    for folder in ("docs", "examples"):
        (tmp_path / folder).mkdir()
    return tmp_path


def dated(checkout: Path, date: str) -> Path:
    changelog = checkout / "CHANGELOG.md"
    heading = f"## [{VERSION}] - {date}"
    changelog.write_text(re.sub(rf"^## \[{VERSION}\].*$", heading, changelog.read_text(), flags=re.M))
    return checkout


def test_the_version_is_that_of_the_package() -> None:
    assert SCRIPT["version"](ROOT) == VERSION


def test_a_tag_of_the_version_with_a_dated_section_is_released(checkout: Path) -> None:
    assert SCRIPT["check"](dated(checkout, "2026-01-31"), f"v{VERSION}") == VERSION


@pytest.mark.parametrize(
    ("tag", "date", "message"),
    [("v9.9.9", "2026-01-31", "the tag is v9.9.9"), (f"v{VERSION}", "Unreleased", "does not date")],
)
def test_another_tag_or_a_section_without_date_is_refused(checkout: Path, tag: str, date: str, message: str) -> None:
    with pytest.raises(SCRIPT["ReleaseError"], match=message):
        SCRIPT["check"](dated(checkout, date), tag)


def test_the_notes_are_the_section_of_the_version_alone(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - x\n\n- This.\n\n## [0.0.1] - y\n\n- That.\n"
    )
    assert SCRIPT["notes"](checkout) == "- This."
    assert SCRIPT["notes"](ROOT)


def test_no_link_of_the_readme_on_pypi_is_relative(checkout: Path) -> None:
    SCRIPT["pypi"](checkout, REPOSITORY)
    readme = (checkout / "README.md").read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert {link for link in links if not re.match(r"https?://|#", link)} == set()
    assert f"({REPOSITORY}/blob/v{VERSION}/docs/porting.md)" in readme
    assert f"({REPOSITORY}/tree/v{VERSION}/examples)" in readme
    assert tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["urls"]["Repository"] == REPOSITORY


def test_the_chart_has_the_images_of_the_registry(checkout: Path) -> None:
    SCRIPT["chart"](checkout, "registry.example/someone")
    values = yaml.safe_load((checkout / "charts/trainwright/values.yaml").read_text())
    assert values["image"]["repository"] == "registry.example/someone/operator"
    assert values["trainerImage"] == f"registry.example/someone/trainer:{VERSION}-cpu"
