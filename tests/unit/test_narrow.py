"""What a terminal of 60 columns shows: nothing is cut, and what matters most is there."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from builders import make_job
from scene import running
from trainwright_operator.local.live import Table_
from trainwright_operator.remote import board, describing, rendering
from trainwright_operator.remote.diagnosis import Facts
from trainwright_operator.report.summary import summarize

NOW = datetime(2026, 1, 1, 0, 10, tzinfo=UTC)
LONG = "gpt-corpus-with-a-rather-long-name-abcde"
WHY = "Insufficient nvidia.com/gpu: 0 of 12 nodes have 8, and preemption finds no victims on any of them"


def lines(what: Any, width: int = 60) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    found = console.file.getvalue().splitlines()
    assert max(map(len, found)) <= width
    assert "…" not in "".join(found)
    return found


def at_work(name: str) -> dict[str, Any]:
    shown = {
        "state": "Running (PodsNotMet)", "step": "14000/20000", "loss": "2.1134", "eval": "2.2971",
        "tokensPerSecond": "18.4k", "ends": "2026-01-01T00:42:00Z", "restarts": "2 (14)",
    }  # fmt: skip
    status = {"state": "Running", "display": shown, "observedGeneration": 1, "conditions": []}
    return {**make_job(name).manifest(), "status": status}


@pytest.mark.parametrize(
    ("name", "width", "headings"),
    [
        ("gpt", 60, ["NAME", "STATE", "STEP", "LOSS", "RESTARTS"]),
        ("gpt", 80, ["NAME", "STATE", "STEP", "LOSS", "ENDS", "RESTARTS"]),
        ("gpt", 120, ["NAME", "STATE", "STEP", "LOSS", "EVAL", "TOK/S", "ENDS", "RESTARTS"]),
        (LONG, 60, ["NAME", "STATE", "STEP"]),
    ],
)
def test_a_narrow_table_leaves_out_what_matters_least(name: str, width: int, headings: list[str]) -> None:
    found = lines(board.render({("team", name): at_work(name)}, NOW, False), width)
    assert found[0].split() == headings
    first = "".join(line.split(" ")[0] for line in found[1:])
    assert first == name, "a name is folded, and never cut"
    assert "14000/20000" in found[1]


def test_prose_goes_below_its_row_where_there_is_no_room_beside_it() -> None:
    scene = running().exit_all(64).settle()
    found = lines(rendering.to_screen(summarize({**scene.builder.manifest(), "status": scene.status}, NOW)))
    row = next(index for index, line in enumerate(found) if line.startswith("1  "))
    assert "2026-01-01T00:00:05Z" in found[row]
    assert found[row + 1].strip() == "gpt-corpus-0-1-0 on node-a: BadConfiguration: exit code 64"


def test_describe_shows_every_word_of_pods_conditions_and_events() -> None:
    job = at_work(LONG)
    held = {"type": "Queued", "status": "True", "reason": "Unschedulable", "message": WHY}
    job["status"]["conditions"] = [{**held, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    pod = f"{LONG}-0-1-0-x7k2p"
    node = "gke-training-pool-a3-highgpu-8g-0a1b2c3d-x9z8"
    facts = Facts(
        job,
        NOW,
        pods=[{"metadata": {"name": pod}, "spec": {"nodeName": node}, "status": {"phase": "Pending"}}],
        events=[
            {
                "metadata": {}, "type": "Warning", "reason": "FailedScheduling", "message": WHY,
                "involvedObject": {"kind": "Pod", "name": pod}, "lastTimestamp": "2026-01-01T00:09:00Z",
            }
        ],
    )  # fmt: skip
    text = "\n".join(lines(describing.render(facts, [])))
    assert " ".join(text.split()).count(WHY) == 2
    cells = [line[at:].split(" ")[0] for line in text.splitlines() for at in range(len(line))]
    assert {"Queued", "Pending", "Warning"} <= set(cells)
    folded = text.replace("\n", " ")
    assert all(part in folded for part in (pod[:12], node[:12], "FailedScheduling"))


def test_a_run_on_this_machine_is_shown_in_the_same_columns() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, _environ={"TERM": "xterm"})
    table = Table_(LONG, console)
    table.show(at_work(LONG)["status"], ())
    table.close()
    assert "…" not in console.file.getvalue()
    assert "14000/20000" in console.file.getvalue()
