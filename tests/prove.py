"""Proves the table of proved fields: with a field forgotten, the test that is named for it must fail.

``python tests/prove.py [FIELD ...]`` takes minutes for all fields, so it is no part of the tests themselves: run it
when the table changes. It exits with 1 when a named test passes although its field has no effect.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
BRIEF = ("-q", "-x", "--no-header", "-p", "no:cacheprovider")
TESTS_FAILED = 1  # pytest's exit code; others mean that nothing was run


def main(fields: list[str]) -> int:
    """Prints a line for each field; the exit code is that of the command."""
    table = proved()
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(lambda field: verdict(field, table[field]), fields or table)
        unproved = [field for field, said in zip(fields or table, verdicts, strict=True) if not tell(field, said)]
    print(f"{len(unproved)} unproved: {', '.join(unproved)}" if unproved else "all proved")
    return bool(unproved)


def proved() -> dict[str, str]:
    spec = spec_from_file_location("fields_proved", TESTS / "unit" / "test_fields_proved.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PROVED


def verdict(field: str, test: str) -> str:
    """``proved``, or what is wrong with ``test``."""
    place = (f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}")
    command = [sys.executable, "-m", "pytest", *BRIEF, *place, str(ROOT / test)]
    paths = f"{TESTS / 'proof'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "FORGOTTEN_ARGUMENT": field, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as elsewhere:  # a forgotten output_dir makes a folder where the test runs
        run = subprocess.run(command, env=environment, cwd=elsewhere, capture_output=True, text=True)
    if run.returncode == TESTS_FAILED:
        return "proved"
    return "passes without it" if run.returncode == 0 else f"did not run: {run.stdout.strip().splitlines()[-1:]}"


def tell(field: str, said: str) -> bool:
    print(f"{field}: {said}", flush=True)
    return said == "proved"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
