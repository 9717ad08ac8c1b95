"""``trainwright checkpoints``: complete and torn, the best, the layout and the size, in 80 columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.checkpoint.store import MANIFEST, CheckpointStore
from trainwright.distributed.ranks import Ranks
from trainwright_operator.cli import main

LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp 2x4": {"layout": {"sharded": True, "mesh": {"dp_replicate": 2, "dp_shard": 4}}},
    "one process": {"layout": {"sharded": False, "mesh": {}}},
    "-": {},
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Checkpoints 10, 20 and 30 of three layouts; 10 is the best, and 30 is torn."""

    def fill(folder: Path) -> None:
        (folder / "pytorch_model_fsdp_0").mkdir()
        (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"w" * 1_400_000)
        (folder / "trainer_state.json").write_text('{"global_step": 1, "best_global_step": 10}')

    store = CheckpointStore(tmp_path / "out", ranks=Ranks())
    store.claim()
    for step, notes in zip((10, 20, 30), LAYOUTS.values(), strict=True):
        store.notes = notes
        store.write(step, [fill])
    (store.path(30) / "pytorch_model_fsdp_0" / "__0_0.distcp").unlink()
    return store.output


def test_a_table_of_80_columns_says_what_can_be_gone_on_from(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["10", "complete"], ["20", "complete"], ["30", "torn"]]
    assert ["*" in line for line in lines[1:4]] == [True, False, False]
    assert all(layout in line and len(line) <= 80 for layout, line in zip(LAYOUTS, lines[1:4], strict=True))
    assert "1.4 MB" in lines[1]
    assert lines[-1] == "checkpoint-30: pytorch_model_fsdp_0/__0_0.distcp is missing"


def test_the_same_as_json(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(output), "-o", "json"]) == 0
    first, _, torn = json.loads(capsys.readouterr().out)
    manifest = json.loads((output / "checkpoint-10" / MANIFEST).read_text())
    assert first["state"] == "complete"
    assert first["best"]
    assert first["layout"] == "fsdp 2x4"
    assert (first["ranks"], first["written"]) == (1, manifest["time"])
    assert torn["state"] == "torn"
    assert torn["problems"] == ["pytorch_model_fsdp_0/__0_0.distcp is missing"]


def test_checksums_are_compared_when_asked_for(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "checkpoint-20" / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"x" * 1_400_000)
    states = {}
    for options in ([], ["--verify"]):
        assert main(["checkpoints", str(output), "-o", "json", *options]) == 0
        states[tuple(options)] = json.loads(capsys.readouterr().out)[1]["state"]
    assert states == {(): "complete", ("--verify",): "torn"}


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("nowhere", "there is no such folder; give the output folder of a run"),
        ("out/checkpoint-10", "is itself a checkpoint; give the folder that holds it"),
    ],
)
def test_a_wrong_folder_is_refused(folder: str, problem: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(output.parent / folder)]) == 2
    assert problem in capsys.readouterr().err


def test_an_empty_folder_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"no checkpoints in {tmp_path}\n"
