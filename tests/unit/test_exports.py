"""What ``import trainwright`` gives and what it loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trainwright

STUB = Path(trainwright.__file__).with_suffix(".pyi")


def test_type_checkers_see_what_is_there():
    nodes = [node for node in ast.parse(STUB.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    assert {name.asname: node.module for node in nodes for name in node.names} == trainwright._EXPORTS


def test_every_name_is_listed_and_others_are_not_there():
    assert trainwright.__all__ == sorted(trainwright._EXPORTS)
    assert set(trainwright.__all__) <= set(dir(trainwright))
    with pytest.raises(AttributeError, match="module 'trainwright' has no attribute 'Trainor'"):
        _ = trainwright.Trainor


def loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{statement}\nprint(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import trainwright",
        "from trainwright import TrainingArguments",
        "from trainwright import TrainerCallback, EarlyStoppingCallback, TrainerState, EvalPrediction",
    ],
)
def test_what_needs_no_torch_loads_none(statement):
    assert not {"torch", "transformers", "accelerate", "numpy"} & loaded_by(statement)
