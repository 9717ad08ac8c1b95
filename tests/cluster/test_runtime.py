"""The wrapper around runc: it takes out what the machine cannot give, and leaves every other byte."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.kind.runtime import wrapper

SCRIPT = 'print(f"{n:,}", [1,], {"a": 1,}); {"oomScoreAdj": 5, "cap": "CAP_SYS_RESOURCE"}'


def described(capabilities: list[str], **more: Any) -> dict[str, Any]:
    return {"capabilities": {"bounding": capabilities, "effective": capabilities}, "args": ["python", SCRIPT], **more}


@pytest.mark.parametrize(("option", "name"), [("--bundle", "config.json"), ("--process", "process.json")])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "spaced"])
@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["CAP_SYS_RESOURCE", "CAP_KILL"], ["CAP_KILL"]),
        (["CAP_KILL", "CAP_SYS_RESOURCE", "CAP_CHOWN"], ["CAP_KILL", "CAP_CHOWN"]),
        (["CAP_KILL", "CAP_SYS_RESOURCE"], ["CAP_KILL"]),
        (["CAP_SYS_RESOURCE"], []),
        (["CAP_KILL"], ["CAP_KILL"]),
    ],
    ids=["first", "between", "last", "alone", "without"],
)
@pytest.mark.parametrize("score", [{}, {"oomScoreAdj": -997}, {"oomScoreAdj": 1000, "cwd": "/"}])
def test_only_the_capability_and_the_score_are_taken_out(
    tmp_path: Path,
    option: str,
    name: str,
    separators: tuple[str, str],
    given: list[str],
    left: list[str],
    score: dict[str, Any],
) -> None:
    file = tmp_path / name
    file.write_text(json.dumps(described(given, **score), separators=separators))
    runc = tmp_path / "runc"
    runc.write_text(wrapper("/bin/true"))
    target = tmp_path if option == "--bundle" else file
    subprocess.run(["sh", runc, "exec", option, target, "name"], check=True)
    kept = {key: value for key, value in score.items() if key != "oomScoreAdj"}
    assert json.loads(file.read_text()) == described(left, **kept)
