"""Checkpoints on disk: whole or absent, one writer, nothing lost; and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from trainer.world import in_world
from trainwright.checkpoint.diskio import Sums, crc32_of, save_summed
from trainwright.checkpoint.store import MANIFEST, CheckpointStore, get_last_checkpoint
from trainwright.contract import UserError
from trainwright.distributed.ranks import Ranks


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a b c")
    (folder / "trainer_state.json").write_text("{}")


def store_with(output: Path, *steps: int, **arguments: Any) -> CheckpointStore:
    store = CheckpointStore(output, **arguments)
    store.claim()
    for step in steps:
        store.write(step, [fill])
    return store


def test_a_checkpoint_is_there_whole_and_listed(tmp_path: Path) -> None:
    folder = store_with(tmp_path / "out", 5).path(5)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest["files"]) == ["model.safetensors", "tokenizer/vocab.txt", "trainer_state.json"]
    checksum = f"{zlib.crc32(b'weights' * 1000):08x}"
    assert manifest["files"]["model.safetensors"] == {"size": 7000, "crc32": checksum}
    assert os.listdir(tmp_path / "out") == ["checkpoint-5"]


def test_a_file_that_is_summed_while_it_is_written_needs_no_second_reading(tmp_path: Path) -> None:
    def write(folder: Path) -> Sums:
        sums: Sums = {}
        save_summed({"whole": torch.rand(700, 1000), "small": [1, 2]}, folder / "optimizer.pt", sums)
        save_summed(torch.rand(10), folder / "changed.pt", sums)
        with open(folder / "changed.pt", "ab") as file:
            file.write(b"more")
        return sums

    with mock.patch("trainwright.checkpoint.diskio.crc32_of", wraps=crc32_of) as read:
        store = CheckpointStore(tmp_path / "out")
        store.write(1, [write])
    assert [call.args[0].name for call in read.call_args_list] == ["changed.pt"]
    assert store.problems(store.path(1)) == []


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 6999)


def flip(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weightz" * 1000)


def lose(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.txt").unlink()


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "model.safetensors has 6999 bytes of 7000"),
    "bits": (flip, "model.safetensors is damaged (its checksum differs)"),
    "lost": (lose, "tokenizer/vocab.txt is missing"),
    "manifest": (empty_manifest, f"its {MANIFEST} cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_skipped_with_one_warning(damage: str, tmp_path: Path) -> None:
    store = store_with(tmp_path, 5, 10)
    harm, words = DAMAGES[damage]
    harm(store.path(10))
    with pytest.warns(UserWarning, match="checkpoint-10 is skipped") as caught:
        assert store.newest_intact() == store.path(5)
    assert words in str(caught[0].message)
    assert len(caught) == 1


def test_the_newest_is_the_highest_number_and_not_the_last_name(tmp_path: Path) -> None:
    store_with(tmp_path, 9, 10)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert get_last_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_of_another_library_are_taken_when_asked_for(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text('{"global_step": 7}')
    assert store.newest(foreign=True) == tmp_path / "checkpoint-7"
    with pytest.warns(UserWarning, match=f"it has no {MANIFEST}"):
        assert store.newest() == tmp_path / "checkpoint-5"


ROTATIONS = {
    # name: (steps there, limit, kept, last written, what remains)
    "no limit": ([1, 2, 3], None, [], 3, [1, 2, 3]),
    "oldest go": ([1, 2, 3], 2, [], 3, [2, 3]),
    "the best stays": ([1, 2, 3, 4], 2, [1], 4, [1, 4]),
    "best and newest stay beyond the limit": ([1, 2, 3], 1, [1], 3, [1, 3]),
    "higher steps are of an earlier run": ([10, 20, 100, 200], 2, [], 20, [10, 20]),
}


@pytest.mark.parametrize("case", ROTATIONS)
def test_rotation_removes_the_oldest_but_never_what_is_to_be_kept(case: str, tmp_path: Path) -> None:
    steps, limit, kept, newest, remaining = ROTATIONS[case]
    store = store_with(tmp_path, *steps)
    store.rotate(limit, keep=[tmp_path / f"checkpoint-{step}" for step in kept], newest=newest)
    assert store.steps() == remaining


def test_an_older_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    (store.path(5) / "stale").touch()
    store.write(5, [fill])
    assert not (store.path(5) / "stale").exists()
    assert store.problems(store.path(5), foreign=False) == []


def test_what_a_killed_writer_left_is_cleared_or_put_back(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5, 6)
    store.path(5).rename(tmp_path / ".checkpoint-5.replaced")
    store.path(6).rename(tmp_path / ".checkpoint-6.deleted")
    (tmp_path / ".checkpoint-7.part-0").mkdir()
    (tmp_path / ".checkpoint-7.new").mkdir()
    CheckpointStore(tmp_path).claim()
    assert os.listdir(tmp_path) == ["checkpoint-5"]


# -- owners and attempts


def test_a_newer_attempt_fences_an_older_one_out(tmp_path: Path) -> None:
    old = store_with(tmp_path, 5, owner="job", attempt=1)
    new = store_with(tmp_path, owner="job", attempt=2)
    with pytest.raises(UserError, match="attempt 2 of this job has claimed it; attempt 1 stops") as caught:
        old.write(6, [fill])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="attempt 2 of this job"):
        old.rotate(1)
    new.write(6, [fill])
    assert new.steps() == [5, 6]
    assert not list(tmp_path.glob(".checkpoint*"))


def test_an_older_attempt_cannot_claim(tmp_path: Path) -> None:
    store_with(tmp_path, owner="job", attempt=3)
    with pytest.raises(UserError, match="attempt 3 of this job has claimed it"):
        store_with(tmp_path, owner="job", attempt=2)
    store_with(tmp_path, owner="job", attempt=3)


@pytest.mark.parametrize(
    ("before", "words"), [("other", "of the job other"), (None, "that no TrainingJob wrote")], ids=["job", "plain"]
)
def test_anothers_checkpoints_are_refused_unless_adopted(before: str | None, words: str, tmp_path: Path) -> None:
    others = store_with(tmp_path, 5, owner=before, attempt=4)
    mine = CheckpointStore(tmp_path, owner="job", attempt=1)
    with pytest.raises(UserError, match=f"holds checkpoints {words}; choose another output"):
        mine.claim()
    mine.claim(adopt=True)
    assert mine.newest() == tmp_path / "checkpoint-5"
    if before is not None:
        with pytest.raises(UserError, match="was taken over by the job job"):
            others.write(6, [fill])


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("team/mine", r"the job team/mine, which began to write here at \d{4}-\S*Z and is another job with the same"),
        (
            "team/other",
            r"the job team/other, which began to write here at \d{4}-\S*Z; choose another output or subPath",
        ),
    ],
    ids=["deleted and applied again", "another"],
)
def test_the_job_that_an_output_belongs_to_is_called_by_its_name(job: str, words: str, tmp_path: Path) -> None:
    others = store_with(tmp_path, 5, owner="uid-1", attempt=4, job=job)
    mine = CheckpointStore(tmp_path, owner="uid-2", attempt=1, job="team/mine")
    with pytest.raises(UserError, match=f"holds checkpoints of {words}") as caught:
        mine.claim()
    assert ("uid-1" in str(caught.value)) == (job == "team/mine")
    mine.claim(adopt=True)
    with pytest.raises(UserError, match=r"was taken over by the job team/mine, which began"):
        others.write(6, [fill])


def test_an_output_without_checkpoints_is_free(tmp_path: Path) -> None:
    store_with(tmp_path, owner="deleted", attempt=7)
    store = store_with(tmp_path, 1, owner="job", attempt=1)
    assert store.newest() == tmp_path / "checkpoint-1"
    assert json.loads((tmp_path / ".trainwright" / "owner.json").read_text()) == {"owner": "job"}
    assert not (tmp_path / ".trainwright" / "attempt-7").exists()


# -- mistakes and full disks


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for output in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(UserError, match=r"out.*: cannot prepare the output: .*it is a file.*choose a folder"):
            CheckpointStore(output).claim()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False)
    subprocess.run(["umount", str(folder)], check=True)


def python_file(folder: Path) -> None:
    (folder / "big").write_bytes(b"x" * (2 << 20))


def torch_file(folder: Path) -> None:
    save_summed(torch.zeros(1 << 19), folder / "optimizer.pt", {})


def safetensors_file(folder: Path) -> None:
    save_file({"w": torch.zeros(1 << 19)}, folder / "model.safetensors")


@pytest.mark.parametrize("too_big", [python_file, torch_file, safetensors_file])
def test_a_full_disk_loses_nothing(too_big: Callable[[Path], None], small_disk: Path) -> None:
    store = store_with(small_disk, 5)
    with pytest.raises(UserError) as caught:
        store.write(6, [too_big])
    assert str(caught.value) == (
        f"{small_disk}: cannot save checkpoint-6: the disk is full; free space, take a larger volume, or keep fewer "
        "checkpoints (save_total_limit); checkpoint-5 is kept"
    )
    assert os.listdir(small_disk) == ["checkpoint-5"]
    assert store.newest() == store.path(5)


def test_a_read_only_output_is_refused_and_its_checkpoint_stays(small_disk: Path) -> None:
    store = store_with(small_disk, 5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for action in (store.claim, lambda: store.write(6, [fill])):
        with pytest.raises(UserError, match=r"(read-only file system|permission denied).*checkpoint-5 is kept$"):
            action()


# -- several ranks


def write_together(argument: tuple[str, str]) -> Any:
    """Each rank writes a file of its own; in the second turn rank 1 cannot."""
    shared, private = argument
    rank = torch.distributed.get_rank()

    def fill_mine(folder: Path) -> None:
        (folder / f"rng_state_{rank}.pth").write_text(str(rank))

    def fail_on_one(folder: Path) -> None:
        fill_mine(folder)
        if rank == 1:
            raise OSError(28, "No space left on device")

    store = CheckpointStore(shared, owner="job", attempt=1)
    store.claim()
    files = sorted(path.name for path in store.write(1, [fill_mine]).iterdir())
    with pytest.raises(UserError) as caught:
        store.write(2, [fail_on_one])
    return files, store.leader, str(caught.value), on_local_disks(Path(private) / str(rank), rank, fill_mine)


def on_local_disks(output: Path, rank: int, fill_mine: Callable[[Path], None]) -> Any:
    """Two nodes of one rank each, which share nothing; rank 1 lost the newest checkpoint."""
    store = CheckpointStore(output, ranks=Ranks(rank, 2, 0))
    for step in (1, 2):
        store.write(step, [fill_mine])
    if rank == 1:
        store.delete(2)
    newest = store.newest()
    return store.leader, newest.name if newest else None, sorted(os.listdir(output))


def test_two_ranks_write_one_checkpoint_or_agree_on_the_newest(tmp_path: Path) -> None:
    argument = (str(tmp_path / "shared"), str(tmp_path / "private"))
    results = in_world(2, "trainer.test_checkpoint:write_together", argument)
    files = [MANIFEST, "rng_state_0.pth", "rng_state_1.pth"]
    said = [result[2] for result in results]
    assert [result[:2] for result in results] == [(sorted(files), 0)] * 2
    assert said[0] == said[1]
    assert "cannot save checkpoint-2: the disk is full" in said[0]
    assert sorted(os.listdir(tmp_path / "shared")) == [".trainwright", "checkpoint-1"]
    assert results[0][3] == (0, "checkpoint-1", ["checkpoint-1", "checkpoint-2"])
    assert results[1][3] == (1, "checkpoint-1", ["checkpoint-1"])
