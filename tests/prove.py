"""Proves the table of effects: with an argument forgotten, the test that is named for it must fail.

``python tests/prove.py [FIELD ...]`` takes a quarter of an hour for all fields, so it is no part of the tests: run it
when the table changes. First every named test must pass as it stands, or its failure would prove nothing. It exits
with 1 when a test passes although its field has no effect.

Each test runs in a fork of this process, which has imported what is slow to import and computed nothing.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FORGET = TESTS / "proof" / "sitecustomize.py"
BRIEF = (
    "-q",
    "--no-header",
    "-p",
    "no:cacheprovider",
    f"--rootdir={ROOT}",
    f"--config-file={ROOT}/pyproject.toml",
)
PASSED, FAILED, BROKEN = 0, 1, 99  # pytest's exit codes, and one of our own
AT_ONCE = 2


def main(fields: list[str]) -> int:
    """Prints a line for each field; the exit code is that of the command."""
    tests = {field: effect.test for field, effect in table().items() if not fields or field in fields}
    preload()
    failing = failures(sorted(set(tests.values())))
    unsound = sorted(field for field, test in tests.items() if failing.get(test))
    for field in unsound:
        print(f"{field}: fails with its effect too: {tests[field]}\n{failing[tests[field]]}", flush=True)
    unproved = list(unsound)
    for field, code in in_forks(tests.keys() - set(unsound), lambda field: run(tests[field], forgotten=field)):
        print(f"{field}: {verdict(code)}", flush=True)
        unproved += [field] if code != FAILED else []
    print(f"{len(unproved)} unproved: {', '.join(unproved)}" if unproved else f"all {len(tests)} proved")
    return bool(unproved)


def table() -> dict[str, object]:
    sys.path.insert(0, str(TESTS))
    from effects import EFFECTS

    return EFFECTS


def preload() -> None:
    """What the tests import, once for all."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    import datasets  # noqa: F401
    import pytest  # noqa: F401
    import transformers

    import trainwright.trainer.trainer  # noqa: F401

    for name in ("Trainer", "GPT2LMHeadModel", "BertForSequenceClassification"):
        getattr(transformers, name)


def in_forks(keys: Iterable[str], work: Callable[[str], int]) -> Iterable[tuple[str, int]]:
    """Each key with the exit code of ``work(key)`` in a process of its own, in the order in which they end."""
    waiting, running = list(keys), {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            key = waiting.pop(0)
            running[fork(work, key)] = key
        process, status = os.wait()
        yield running.pop(process), os.waitstatus_to_exitcode(status)


def fork(work: Callable[[str], int], key: str) -> int:
    sys.stdout.flush()
    if process := os.fork():
        return process
    code = BROKEN
    try:
        code = work(key)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Failures:
    """A plugin of pytest: why a test failed, by its name."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.told[report.nodeid] = str(report.longrepr).splitlines()[-1]


def failures(tests: list[str]) -> dict[str, str]:
    """Those of ``tests`` that fail as things are, each with the last line of what it says; all in one run."""
    record = Path(tempfile.mkdtemp(prefix="prove-")) / "failures.json"

    def work(_: str) -> int:
        seen = Failures()
        code = silently_tested([str(ROOT / test) for test in tests], [seen])
        if code not in (PASSED, FAILED):
            seen.told[""] = Path("log").read_text()
        record.write_text(json.dumps(seen.told))
        return code

    ((_, code),) = in_forks(["all"], work)
    told = json.loads(record.read_text()) if record.exists() else {}
    if code not in (PASSED, FAILED):
        sys.exit(f"the tests did not run (exit code {code})\n{told.get('', '')}")
    return {test: why for test in tests for name, why in told.items() if name.startswith(test)}


def run(test: str, forgotten: str) -> int:
    """pytest's exit code for one test, where every process has forgotten one argument."""
    paths = (str(FORGET.parent), os.environ.get("PYTHONPATH", ""))
    os.environ |= {"FORGOTTEN_ARGUMENT": forgotten, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    runpy.run_path(str(FORGET))
    return silently_tested([str(ROOT / test), "-x"])


def silently_tested(tests: list[str], plugins: Sequence[object] = ()) -> int:
    import pytest

    os.chdir(tempfile.mkdtemp(prefix="prove-"))  # a forgotten output_dir makes a folder where the test runs
    log = os.open("log", os.O_CREAT | os.O_RDWR)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return int(pytest.main([*BRIEF, *tests], plugins=list(plugins)))


def verdict(code: int) -> str:
    return {FAILED: "proved", PASSED: "passes without it"}.get(code, f"did not run (exit code {code})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
