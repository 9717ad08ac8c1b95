"""A base installation: what needs an extra that is not there says so in one line, and the rest works."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.paths import CHECKOUT
from trainwright import extras

Without = Callable[..., subprocess.CompletedProcess[str]]

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Without:
    """Python with some packages that it cannot import, from its start on."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(CHECKOUT)

    def run(packages: tuple[str, ...], *command: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "sitecustomize.py").write_text(BLOCKED.format(packages=set(packages)))
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)

    return run


def test_the_table_is_that_of_the_package() -> None:
    optional = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra: list(wanted) for extra, wanted in extras.EXTRAS.items()} == {
        extra: optional[extra] for extra in ("trainer", "hf", "search", "operator", "client")
    }


TORCH = "pip install 'torch>=2.9' 'accelerate>=1.12' 'safetensors>=0.6' 'numpy>=2'"
IMPORTS = {
    "from trainwright import Trainer": ("torch", "Trainer", TORCH),
    "from trainwright import Seq2SeqTrainer": ("accelerate", "Seq2SeqTrainer", TORCH),
    "from trainwright import get_scheduler": ("torch", "get_scheduler", TORCH),
    "from trainwright import HfArgumentParser": (
        "transformers",
        "HfArgumentParser",
        "'transformers>=5.24'",
    ),
}


@pytest.mark.parametrize(("statement", "said"), IMPORTS.items(), ids=IMPORTS)
def test_importing_a_name_without_its_package_says_what_to_install(
    statement: str, said: tuple[str, str, str], without: Without
) -> None:
    package, name, mend = said
    ended = without((package,), "-c", f"try:\n    {statement}\nexcept ImportError as error:\n    print(error)")
    (line,) = ended.stdout.splitlines()
    assert line.startswith(f"trainwright.{name}: {package} is not installed; it comes with the extra ")
    assert mend in line


PROGRAMS = {
    "operator": ("kopf", "trainwright_operator.main", (), "trainwright-operator: kopf"),
    "operator's metrics": (
        "prometheus_client",
        "trainwright_operator.main",
        (),
        "trainwright-operator: prometheus_client",
    ),
    "watch": ("kubernetes", "trainwright_operator.cli", ("watch", "x"), "error: kubernetes"),
    "logs": ("kubernetes", "trainwright_operator.cli", ("logs", "x"), "error: kubernetes"),
    "report": ("kubernetes", "trainwright_operator.cli", ("report", "x"), "error: kubernetes"),
    "describe": ("kubernetes", "trainwright_operator.cli", ("describe", "x"), "error: kubernetes"),
    "run": ("torch", "trainwright_operator.cli", ("run", "examples/gpt-on-stdlib.yaml"), "trainwright: torch"),
    "overlay": ("torch", "trainwright.overlay", ("x.py",), "error: trainwright.overlay: torch"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_running_a_program_without_its_package_says_what_to_install(program: str, without: Without) -> None:
    package, name, arguments, begins = PROGRAMS[program]
    ended = without((package,), "-m", name, *arguments)
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{begins} is not installed; it comes with the extra ")
    assert "pip install '" in line
    assert ended.returncode != 0
    assert ended.stdout == ""


def test_a_base_installation_checks_plans_explains_and_converts(tmp_path: Path, without: Without) -> None:
    packages = tuple(package for extra in extras.EXTRAS for package in extras.packages(extra))
    job, arguments = str(CHECKOUT / "examples/gpt-on-stdlib.yaml"), tmp_path / "args.json"
    arguments.write_text('{"learning_rate": 1e-4}')
    lines = [["validate", job], ["plan", job], ["explain", "optim"], ["convert", str(arguments)], ["run", "--help"]]
    code = (
        "import sys\n"
        "from trainwright import EarlyStoppingCallback, TrainingArguments\n"
        "from trainwright_operator.cli import main\n"
        "def code(line):\n"
        "    try:\n        return main(line)\n"
        "    except SystemExit as ended:\n        return ended.code or 0\n"
        f"sys.exit(sum(code(line) for line in {lines!r}))"
    )
    ended = without(packages, "-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
