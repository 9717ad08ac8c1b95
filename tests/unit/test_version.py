"""One version for the wheel, the chart and the images: every place that names it agrees with ``trainwright``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import trainwright
import trainwright_operator
from trainwright_operator.cluster.settings import Settings
from trainwright_operator.core.placement.pools import DEFAULT_IMAGE

ROOT = Path(__file__).parents[2]
VERSION = trainwright.__version__
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.yaml"))]
IMAGE_TAG = re.compile(r"\b(?:trainer|operator):(\d[\w.]*)")


def test_the_operator_has_the_version_of_the_trainer() -> None:
    assert trainwright_operator.__version__ == VERSION


def test_the_wheel_takes_its_version_from_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in settings["project"]["dynamic"]
    assert ROOT / settings["tool"]["hatch"]["version"]["path"] == Path(trainwright.__file__)


def test_the_chart_and_the_plain_manifest_have_it() -> None:
    chart = yaml.safe_load((ROOT / "charts/trainwright/Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    bundle = (ROOT / "charts/bundle/trainwright.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"app\.kubernetes\.io/version: (\S+)", bundle)) == {VERSION}
    assert set(IMAGE_TAG.findall(bundle)) == {VERSION}


def test_images_that_nobody_names_have_it() -> None:
    assert f"trainwright/trainer:{VERSION}-cpu" == DEFAULT_IMAGE == Settings().image


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_and_examples_name_images_and_wheels_of_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {*IMAGE_TAG.findall(text), *re.findall(r"trainwright-(\d[\w.]*?)-py3", text)} <= {VERSION}


def test_the_changelog_has_a_section_for_it() -> None:
    headings = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert VERSION in headings


def test_the_package_folder_alone_says_it(tmp_path: Path) -> None:
    """An image may have the folder without the metadata of an installed distribution."""
    package = Path(trainwright.__file__).parent
    shutil.copytree(package, tmp_path / "trainwright", ignore=shutil.ignore_patterns("__pycache__"))
    program = "import sys, trainwright; print(trainwright.__version__, 'importlib.metadata' in sys.modules)"
    command = [sys.executable, "-S", "-E", "-c", program]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.split() == [VERSION, "False"]
