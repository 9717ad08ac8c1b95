"""``trainwright prove``: which faults a seed chooses, and when two runs are alike. The real thing is in tests/local."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from trainwright_operator.local import comparing, faults, proving


def test_a_seed_chooses_the_same_faults_again() -> None:
    chosen = faults.choose(7, steps=100, count=5)
    assert faults.choose(7, steps=100, count=5) == chosen
    assert faults.choose(8, steps=100, count=5) != chosen
    assert [fault.step for fault in chosen] == sorted({fault.step for fault in chosen})
    assert all(1 <= fault.step < 100 and 0 <= fault.place < 1 for fault in chosen)


def test_faults_are_of_the_kinds_asked_for_and_no_more_than_there_are_steps() -> None:
    chosen = faults.choose(1, steps=4, count=10, kinds=("pod",))
    assert [(fault.step, fault.kind) for fault in chosen] == [(1, "pod"), (2, "pod"), (3, "pod")]


def save(folder: Path, name: str, tensors: dict[str, list[float]]) -> None:
    """A file of safetensors, by hand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for tensor, values in tensors.items():
        offsets = [len(data), len(data) + 4 * len(values)]
        header[tensor] = {"dtype": "F32", "shape": [len(values)], "data_offsets": offsets}
        data += struct.pack(f"<{len(values)}f", *values)
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        save(tmp_path / name, "model.safetensors", {"weight": [1.0, 2.0], "bias": [0.5]})
        save(tmp_path / name / "checkpoint-5", "model.safetensors", {"weight": [9.0]})
        rows = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": float("nan"), "eval_runtime": float(len(name))}]
        state = {"log_history": [*rows, {"step": 2, "train_runtime": 1.0}], "global_step": 2}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path / "one", tmp_path / "other"


def test_runs_are_alike_by_their_weights_and_logs_and_not_by_their_times(runs: tuple[Path, Path]) -> None:
    weights, losses = comparing.weights(*runs), comparing.losses(*runs)
    assert (weights.same, weights.total, weights.holds) == (2, 2, True)
    assert (losses.same, losses.total, losses.holds) == (2, 2, True), "two NaN at one step are alike"


def test_one_bit_of_one_tensor_is_a_difference(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "model.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    found = comparing.weights(*runs)
    assert (found.same, found.total, found.holds) == (1, 2, False)
    assert str(found) == "1 of 2 tensors identical; model.safetensors:bias differs"


def test_a_missing_tensor_is_named_with_its_run(runs: tuple[Path, Path]) -> None:
    save(runs[1], "model.safetensors", {"weight": [1.0, 2.0]})
    assert "model.safetensors:bias is not in the disturbed run" in str(comparing.weights(*runs))


def test_newest_checkpoints_are_compared_where_a_script_leaves_no_model(runs: tuple[Path, Path]) -> None:
    for folder in runs:
        (folder / "model.safetensors").unlink()
    save(runs[0] / "checkpoint-10", "model.safetensors", {"weight": [3.0]})
    save(runs[1] / "checkpoint-10", "model.safetensors", {"weight": [3.0]})
    found = comparing.weights(*runs)
    assert (found.same, found.total) == (1, 1)


def test_runs_of_a_script_that_trains_into_a_folder_below_its_output_are_compared(runs: tuple[Path, Path]) -> None:
    for number, run in enumerate(runs):
        (run / "trainer_state.json").unlink()
        for step, loss in ((5, 1.0), (10, float(number))):
            (run / "adapters" / f"checkpoint-{step}").mkdir(parents=True)
            rows = {"log_history": [{"step": step, "loss": loss}], "global_step": step}
            (run / "adapters" / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(rows))
    assert str(comparing.losses(*runs)) == "0 of 1 logged values identical; loss at step 10 differs"
    assert proving._kept(runs[0]) == 10


def test_nothing_to_compare_proves_nothing(tmp_path: Path) -> None:
    found = comparing.weights(tmp_path, tmp_path)
    assert not found.holds
    assert str(found) == "no tensors to compare"


def ended(**changes: Any) -> proving._Ended:
    strike = faults.Strike(faults.Fault(5, "rank", 0.0), 6, 1, "rank 0", 1.5, 4)
    attempts = [{"attempt": 1, "outcome": "Failed", "reason": "Error", "exitCode": 137}, {"attempt": 2}]
    given = {"status": {"state": "Succeeded", "attempts": attempts}, "strikes": [strike], "missed": [], "orphans": []}
    return proving._Ended(**{**given, **changes})


ALIKE = [comparing.Alike("tensors", 2, 2)]


def test_the_table_says_what_a_fault_cost_and_how_the_status_explains_it() -> None:
    assert list(proving._problems(ended(), ALIKE)) == []
    (_, row) = proving._table(ended())
    assert row.split("  ")[0] == "6"
    assert [part.strip() for part in row.split("  ") if part.strip()] == [
        "6", "rank 0 killed", "1.5 s", "2", "attempt 1 Failed: Error, exit code 137",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "alike", "problem"),
    [
        ({"orphans": [17]}, ALIKE, "1 processes were left"),
        ({"strikes": []}, ALIKE, "before any fault"),
        ({}, [comparing.Alike("tensors", 1, 2, "bias differs")], "1 of 2 tensors identical; bias differs"),
        ({"status": {"state": "Succeeded", "attempts": [{"attempt": 1}, {"attempt": 2}]}}, ALIKE, "is not explained"),
        (
            {"status": {"state": "Failed", "conditions": [
                {"type": "Failed", "status": "True", "reason": "TooManyRestarts", "message": "4 failures"}]}},
            ALIKE, "the disturbed run failed: TooManyRestarts: 4 failures",
        ),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_promised_is_a_problem(changes: dict[str, Any], alike: list[Any], problem: str) -> None:
    assert problem in "; ".join(proving._problems(ended(**changes), alike))


def test_a_folder_of_something_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(proving.UserError, match="holds files of something else"):
        proving._clear(tmp_path)
    assert (tmp_path / "notes.txt").exists()
