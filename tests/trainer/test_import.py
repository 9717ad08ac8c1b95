"""The Trainer loads torch and accelerate, and nothing heavy beside them."""

from __future__ import annotations

import subprocess
import sys

import trainwright


def test_the_trainer_loads_no_transformers():
    statement = "import sys\nfrom trainwright import Trainer, TrainingArguments\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, text=True).stdout
    loaded = set(output.split())
    assert "torch" in loaded
    assert not {"transformers", "datasets", "torch._dynamo", "torch._inductor", "pandas"} & loaded


def test_every_name_can_be_imported():
    for name in trainwright.__all__:
        assert getattr(trainwright, name).__name__ == name
