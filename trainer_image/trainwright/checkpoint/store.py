"""Checkpoints on disk: complete or absent, never two writers in one folder, and no saved checkpoint is lost.

A checkpoint is written to a temporary folder, flushed, listed in a manifest with sizes and checksums, and renamed to
``checkpoint-N``. A killed writer only leaves temporary folders, which the next run removes. Every rank writes its own
files. The *leader* of each output (rank 0, or one rank of every node if the nodes do not share the output) moves them
together and commits.

The output of a TrainingJob records its owner and the newest attempt that claimed it; see
:mod:`trainwright.checkpoint.fence`.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainwright.checkpoint.diskio import crc32_of, explained, flush_folder
from trainwright.checkpoint.fence import Fence
from trainwright.checkpoint.part import Part, Piece
from trainwright.contract import ResolvedJob, UserError
from trainwright.distributed.ranks import Ranks
from trainwright.job import current_round

PREFIX = "checkpoint"
MANIFEST = "trainwright_manifest.json"
TRAINER_STATE = "trainer_state.json"
MANIFEST_VERSION = 1

_NAME = re.compile(rf"^{PREFIX}-(\d+)$")
_ASIDE = re.compile(rf"^\.{PREFIX}-(\d+)\.(part|new|replaced|deleted)\b")


def get_last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The complete ``checkpoint-N`` with the highest N, or None. Incomplete ones are skipped with a warning."""
    found = CheckpointStore(folder).newest_here(foreign=True)
    return str(found) if found else None


class CheckpointStore:
    """The checkpoints of one output folder, as one rank sees them.

    Args:
        output_dir: The folder of the ``checkpoint-N`` folders; created when the first one is written.
        owner: The job that trains here. None for a run without a job, which claims nothing, as in transformers.
        attempt: The attempt of the owner; a newer attempt fences out older ones.
        round: The round of the attempt, of ranks that were restarted in place; a newer one fences out older ones.
        job: The name of the owner for messages.
        ranks: The ranks that train together; by default those of torch.distributed, or this process alone.

    Attributes:
        notes: What the manifest says besides, about the run that writes: its layout, for one.

    Whether the nodes share the output is detected, not configured. If they do not, every node keeps a full copy,
    because a run could not resume from less.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        owner: str | None = None,
        attempt: int = 0,
        *,
        round: int = 1,
        job: str = "",
        ranks: Ranks | None = None,
    ) -> None:
        self.output = Path(output_dir)
        self.ranks = ranks or Ranks.current()
        self.fence = Fence(self.output, owner, attempt, job, round)
        self.notes: dict[str, Any] = {}
        self._leader: int | None = None
        self._apart: Ranks | None = None

    @classmethod
    def of_job(cls, output_dir: str | os.PathLike[str], job: ResolvedJob) -> CheckpointStore:
        """The checkpoints that the ranks of this process's TrainingJob write."""
        name = f"{job.namespace}/{job.name}"
        return cls(output_dir, owner=job.uid, attempt=job.attempt, round=current_round(), job=name)

    # -- who writes

    @property
    def leader(self) -> int:
        """The rank that commits on this rank's output."""
        if self._leader is None:
            self._leader = self._choose_leader()
        return self._leader

    @property
    def is_leader(self) -> bool:
        """Whether this rank writes the files that each output needs once: model, optimizer, trainer state."""
        return self.leader == self.ranks.rank

    def seen_by(self, ranks: Ranks) -> CheckpointStore:
        """The same output, for a thread whose collectives use another process group of the same ranks."""
        other = copy.copy(self)
        other._leader, other.ranks = self.leader, ranks
        return other

    def apart(self) -> Ranks:
        """The ranks with another process group, for collectives beside the training; all ranks make it together."""
        if self._apart is None:
            self._apart = self.ranks.apart()
        return self._apart

    def check_shared(self) -> None:
        """Raises :class:`UserError` unless all ranks see the same output, as a checkpoint in shards requires."""
        if any(self.ranks.gather(self.leader)):
            raise UserError(
                f"{self.output}: the nodes do not share this folder, and each would keep only its shards of a "
                "checkpoint, from which no run could resume; choose an output that all nodes mount"
            )

    def _choose_leader(self) -> int:
        if self.ranks.world_size == 1:
            return 0
        return 0 if self._is_shared() else self.ranks.rank - self.ranks.local_rank

    def _is_shared(self) -> bool:
        """Whether every rank sees files of rank 0 here. Checked once, with a file name that no client has cached."""
        probe = self.output / f".probe-{os.getpid()}-{time.time_ns()}"
        if self.ranks.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            probe.touch()
        name = self.ranks.gather(probe.name)[0]
        shared = all(self.ranks.gather((self.output / name).exists()))
        if self.ranks.rank == 0:
            probe.unlink()
        return shared

    # -- taking over an output

    def claim(self, adopt: bool = False) -> None:
        """Claim the output before training: fence out older attempts and remove what a killed writer left.

        Raises:
            UserError: The output is not a folder, is not writable, holds another job's checkpoints (and ``adopt`` is
                false), or a newer attempt has claimed it.
        """
        self.ranks.agree(self._check_folder)
        leads = self.is_leader
        self.ranks.agree(lambda: self._claim_here(adopt) if leads else None)

    def _check_folder(self) -> None:
        with self.explained("prepare the output"):
            self.output.mkdir(parents=True, exist_ok=True)
            if not os.access(self.output, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.output))

    def _claim_here(self, adopt: bool) -> None:
        with self.explained("prepare the output"):
            self.fence.claim(adopt, holds_checkpoints=bool(self.steps()))
            self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Restore a checkpoint that a killed writer was replacing; remove its other temporary folders."""
        for folder in self.output.glob(f".{PREFIX}-*"):
            match = _ASIDE.match(folder.name)
            if match is None:
                continue
            home = self.path(int(match[1]))
            if match[2] == "replaced" and not home.exists() and not self.problems(folder):
                folder.rename(home)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    # -- finding

    def path(self, step: int) -> Path:
        return self.output / f"{PREFIX}-{step}"

    def steps(self) -> list[int]:
        """The steps that have a folder here, ascending, complete or not."""
        try:
            names = os.listdir(self.output)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(match[1]) for match in map(_NAME.match, names) if match and (self.output / match[0]).is_dir())

    def newest(self, foreign: bool = False) -> Path | None:
        """The newest complete checkpoint that every rank can read, with the same step on all ranks; None if none.

        The files have the sizes of the manifest; see :meth:`newest_intact` for their contents.

        Args:
            foreign: Also accept folders without a manifest, as Hugging Face's Trainer writes them.
        """
        common = self._complete_steps(foreign)
        return self.path(common[-1]) if common else None

    def newest_intact(self, foreign: bool = False) -> Path | None:
        """Like :meth:`newest`, but its files also have the checksums of the manifest; the ranks share the reading."""
        for step in reversed(self._complete_steps(foreign)):
            damaged = self.damaged(self.path(step))
            if not damaged:
                return self.path(step)
            if self.ranks.rank == 0:
                warnings.warn(f"{self.path(step)} is skipped: {_checksum_differs(damaged[0])}", stacklevel=2)
        return None

    def newest_of(self, owner: str, adopted: bool = False) -> Path | None:
        """Like :meth:`newest_intact`, but None if another owner wrote it and ``adopted`` is false."""
        newest = self.newest_intact()
        if newest is None or adopted:
            return newest
        written_by = json.loads((newest / MANIFEST).read_text(encoding="utf-8")).get("owner")
        return newest if written_by == owner else None

    def newest_here(self, foreign: bool = False) -> Path | None:
        """Like :meth:`newest_intact`, for the output of this rank only, without collectives."""
        for step in reversed(self.steps()):
            problems = self.problems(self.path(step), foreign)
            if not problems:
                return self.path(step)
            warnings.warn(f"{self.path(step)} is skipped: {problems[0]}", stacklevel=3)
        return None

    def _complete_steps(self, foreign: bool) -> list[int]:
        """The steps that are complete for every leader, ascending."""
        steps = self.steps() if self.is_leader else []
        problems = {step: self.problems(self.path(step), foreign, contents=False) for step in steps}
        mine = {step for step in steps if not problems[step]} if self.is_leader else None
        complete = sorted(set.intersection(*(held for held in self.ranks.gather(mine) if held is not None)))
        for step in steps:
            if problems[step] and step > max(complete, default=-1):
                warnings.warn(f"{self.path(step)} is skipped: {problems[step][0]}", stacklevel=3)
        return complete

    def damaged(self, folder: Path) -> list[str]:
        """The files of a complete checkpoint whose checksums differ. Ranks that see the same files share the reading.

        All ranks call it together. Empty for a checkpoint of another library, which has no checksums.
        """
        leaders = self.ranks.gather(self.leader)
        peers = [rank for rank, leader in enumerate(leaders) if leader == self.leader]
        mine = _share(_files_of(folder), peers.index(self.ranks.rank), len(peers))
        found = self.ranks.gather([name for name, entry in mine.items() if not _is_as_saved(folder / name, entry)])
        return [name for names in found for name in names]

    def changes(self, folder: Path) -> tuple[list[str], list[str]]:
        """The files that are missing in a checkpoint, and those that have changed since the save.

        All ranks call it together, and share the reading.

        Raises:
            UserError: The manifest cannot be read.
        """
        try:
            files = _files_of(folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder}: its {MANIFEST} cannot be read ({error}); {how_to_accept(folder)}") from error
        return [name for name in files if not (folder / name).is_file()], self.damaged(folder)

    def problems(self, folder: Path, foreign: bool = True, contents: bool = True) -> list[str]:
        """Why a checkpoint cannot be trusted; empty if every file has the size and the checksum of the manifest.

        Args:
            foreign: Also accept a folder without a manifest.
            contents: Also compare the checksums, for which every file is read.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return _compare(folder, manifest["files"], contents)
        except FileNotFoundError:
            return _foreign_problems(folder) if foreign else [f"it has no {MANIFEST}"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            return [f"its {MANIFEST} cannot be read ({error})"]

    # -- writing

    def part(self, step: int) -> Part:
        """This rank's files of ``checkpoint-<step>``; writing may begin before :meth:`write` is called."""
        return Part(self._part(step, self.ranks.rank))

    def write(self, step: int, pieces: Sequence[Piece], begun: Part | None = None) -> Path:
        """Write ``checkpoint-<step>``; all ranks call it together, and it returns when the checkpoint is complete.

        Args:
            step: The optimizer step. An older checkpoint of this step is replaced.
            pieces: They write this rank's files.
            begun: The part with the pieces that were written before, if any.

        Raises:
            UserError: The disk is full or not writable, or a newer attempt has claimed the output. The temporary files
                are removed; all earlier checkpoints stay.
        """
        part, leads = begun or self.part(step), self.is_leader
        try:
            self.ranks.agree(lambda: self._begin(step, part, is_new=begun is None))
            files = self.ranks.agree(lambda: self._write_part(step, part, pieces))
            self.ranks.agree(lambda: self._commit(step, files) if leads else None)
        finally:
            part.remove()
        return self.path(step)

    def _part(self, step: int, rank: int) -> Path:
        return self.output / f".{PREFIX}-{step}.part-{rank}"

    def _begin(self, step: int, part: Part, is_new: bool) -> None:
        """Fail on all ranks before any of them waits for the others in a piece."""
        if part.failure is not None:
            raise part.failure
        if is_new:
            with self.explained(f"save {PREFIX}-{step}"):
                part.open()

    def _write_part(self, step: int, part: Part, pieces: Sequence[Piece]) -> tuple[int, dict[str, Any]]:
        with self.explained(f"save {PREFIX}-{step}"):
            part.write(pieces)
            return self.leader, part.files

    def _commit(self, step: int, parts: list[tuple[int, dict[str, Any]]]) -> None:
        """Move every rank's files into one folder, write the manifest, and rename the folder."""
        whole = self.output / f".{PREFIX}-{step}.new"
        with self.explained(f"save {PREFIX}-{step}"):
            try:
                shutil.rmtree(whole, ignore_errors=True)
                whole.mkdir()
                files = self._collect(step, whole, parts)
                self._write_manifest(whole, step, files)
                flush_folder(whole)
                self.fence.check()
                self._rename_into_place(whole, self.path(step))
            finally:
                shutil.rmtree(whole, ignore_errors=True)

    def _collect(self, step: int, whole: Path, parts: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        files: dict[str, Any] = {}
        for rank, (leader, entries) in enumerate(parts):
            if leader != self.ranks.rank:
                continue
            part = self._part(step, rank)
            for name, entry in entries.items():
                if name in files:
                    raise FileExistsError(errno.EEXIST, f"ranks write the same file {name}", str(part / name))
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(part / entry["path"], whole / name)
                files[name] = {"size": entry["size"], "crc32": entry["crc32"]}
        for inner in {(whole / name).parent for name in files} - {whole}:
            flush_folder(inner)
        return files

    def _write_manifest(self, folder: Path, step: int, files: dict[str, Any]) -> None:
        manifest = {
            "version": MANIFEST_VERSION,
            "step": step,
            "owner": self.fence.owner,
            "attempt": self.fence.attempt,
            "worldSize": self.ranks.world_size,
            **self.notes,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": files,
        }
        with open(folder / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())

    def _rename_into_place(self, whole: Path, home: Path) -> None:
        """A folder cannot be renamed over another, so the old one is renamed first and deleted afterwards."""
        aside = home.with_name(f".{home.name}.replaced")
        if home.exists():
            shutil.rmtree(aside, ignore_errors=True)
            home.rename(aside)
        try:
            whole.rename(home)
        except OSError:
            if aside.exists():
                aside.rename(home)
            raise
        flush_folder(self.output)
        shutil.rmtree(aside, ignore_errors=True)

    # -- deleting

    def rotate(self, limit: int | None, keep: Iterable[str | os.PathLike[str]] = (), newest: int | None = None) -> None:
        """Delete the oldest checkpoints beyond ``limit``; never the newest and those in ``keep`` (the best).

        Args:
            limit: How many to keep; None or 0 for all.
            keep: Folders to keep; they count towards the limit.
            newest: The step last written. Higher steps are from an earlier run, and are deleted first.
        """
        if not limit or limit <= 0 or not self.is_leader:
            return
        with self.explained("delete old checkpoints"):
            self.fence.check()
            for step in self._outdated(limit, {Path(folder).name for folder in keep}, newest):
                self.delete(step)

    def _outdated(self, limit: int, kept_names: set[str], newest: int | None) -> list[int]:
        steps = self.steps()
        if newest in steps:
            steps = [step for step in steps if step > newest] + [step for step in steps if step <= newest]
        free = [step for step in steps[:-1] if self.path(step).name not in kept_names]
        return free[: max(0, len(steps) - limit)]

    def delete(self, step: int) -> None:
        """Rename, then delete, so that a reader never finds an incomplete checkpoint under its name."""
        aside = self.output / f".{PREFIX}-{step}.deleted"
        shutil.rmtree(aside, ignore_errors=True)
        self.path(step).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """A context that turns a disk error into one line, which names the newest remaining checkpoint."""
        try:
            with explained(f"{self.output}: cannot {doing}", self._what_stays):
                yield
        except FileNotFoundError:
            self.fence.check()  # a newer attempt removes the temporary files of this one
            raise

    def _what_stays(self) -> str:
        steps = self.steps()
        return f"{PREFIX}-{steps[-1]} is kept" if steps else "no checkpoint has been saved"


def how_to_accept(folder: Path) -> str:
    """What to do about a checkpoint whose files have changed since the save."""
    return f"use another checkpoint, or delete {folder / MANIFEST} to use its files as they are"


def _files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> size and checksum of each file in the manifest; empty if there is none."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return {}
    return files


def _share(files: dict[str, dict[str, Any]], index: int, count: int) -> dict[str, dict[str, Any]]:
    """One of ``count`` shares of the files, of about equally many bytes."""
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(files, key=lambda name: (-files[name]["size"], name)):
        smallest = sizes.index(min(sizes))
        shares[smallest].append(name)
        sizes[smallest] += files[name]["size"]
    return {name: files[name] for name in shares[index]}


def _is_as_saved(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file has its size and checksum; a missing one counts as such, and is reported as missing."""
    try:
        return bool(path.stat().st_size == entry["size"] and crc32_of(path) == entry["crc32"])
    except OSError as error:
        return error.errno == errno.ENOENT


def _checksum_differs(name: str) -> str:
    return f"{name} is damaged (its checksum differs)"


def _compare(folder: Path, files: dict[str, dict[str, Any]], contents: bool) -> list[str]:
    """Compares the sizes first, because they cost nothing; the checksums only if all sizes match."""
    problems = []
    for name, entry in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            problems.append(f"{name} is missing")
        else:
            if size != entry["size"]:
                problems.append(f"{name} has {size} bytes of {entry['size']}")
    if problems or not contents:
        return problems
    return [_checksum_differs(name) for name, entry in files.items() if crc32_of(folder / name) != entry["crc32"]]


def _foreign_problems(folder: Path) -> list[str]:
    """Checks a checkpoint of another library: the trainer state is written last, so it implies that all is there."""
    try:
        json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, TypeError, KeyError):
        return [f"it has neither a {MANIFEST} nor a readable {TRAINER_STATE}"]
    return []
