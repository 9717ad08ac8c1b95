"""examples/notebook.ipynb: its cells run one after another, and it holds what they printed, without an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_was_run_in_order_and_is_small() -> None:
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert FILE.stat().st_size < 32_000


def test_its_cells_train_here_and_in_two_pods(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join([*CODE, 'print("SAYS", at_one.item())']))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "wave succeeded at step 200/200" in done.stdout
    assert abs(float(done.stdout.rpartition("SAYS ")[2]) - 0.8415) < 0.02
