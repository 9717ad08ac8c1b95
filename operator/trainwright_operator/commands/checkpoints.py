"""``trainwright checkpoints``: what an output folder holds to go on from."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright.checkpoint.store import MANIFEST, TRAINER_STATE, CheckpointStore
from trainwright.distributed.ranks import Ranks

DONE, INVALID = 0, 2
COLUMNS = ("STEP", "STATE", "BEST", "RANKS", "LAYOUT", "SIZE", "WRITTEN")


@dataclass(frozen=True)
class Checkpoint:
    """One ``checkpoint-N`` folder.

    Attributes:
        problems: Why no run can go on from it; empty if it is complete.
        layout: How the model was spread over the ranks; None if another library or an older release wrote it.
        written: The time in UTC, if known.
    """

    step: int
    path: str
    problems: list[str]
    best: bool
    ranks: int | None
    layout: str | None
    bytes: int
    written: str | None
    owner: str | None

    @property
    def state(self) -> str:
        return "torn" if self.problems else "complete"


def main(options: Namespace) -> int:
    folder = Path(options.folder)
    if not folder.is_dir():
        return _refuse(f"{folder}: there is no such folder; give the output folder of a run")
    found = checkpoints_in(folder, options.verify)
    if not found and (folder / TRAINER_STATE).is_file():
        return _refuse(f"{folder}: is itself a checkpoint; give the folder that holds it")
    if options.output == "json":
        print(json.dumps([{"state": one.state, **vars(one)} for one in found], indent=2))
    elif found:
        print("\n".join(table(found)))
    else:
        print(f"no checkpoints in {folder}", file=sys.stderr)
    return DONE


def _refuse(problem: str) -> int:
    print(f"trainwright checkpoints: {problem}", file=sys.stderr)
    return INVALID


def checkpoints_in(folder: Path, verify: bool = False) -> list[Checkpoint]:
    """The checkpoints in an output folder, oldest first.

    Args:
        verify: Also compare checksums, for which all files are read.
    """
    store = CheckpointStore(folder, ranks=Ranks())
    problems = {step: store.problems(store.path(step), contents=verify) for step in store.steps()}
    whole = [step for step in problems if not problems[step]]
    best = _json(store.path(whole[-1]) / TRAINER_STATE).get("best_global_step") if whole else None
    return [_checkpoint(store.path(step), step, problems[step], step == best) for step in problems]


def _checkpoint(folder: Path, step: int, problems: list[str], best: bool) -> Checkpoint:
    manifest = _json(folder / MANIFEST)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ranks, owner = manifest.get("worldSize"), manifest.get("owner")
    return Checkpoint(step, str(folder), problems, best, ranks, _layout(manifest), size, manifest.get("time"), owner)


def _layout(manifest: dict[str, Any]) -> str | None:
    """``one process``, ``ddp 4``, ``zero 3 x 4``, ``fsdp 4``, or ``fsdp 2x4``: replicas times ranks of a replica."""
    layout, ranks = manifest.get("layout"), manifest.get("worldSize")
    if not isinstance(layout, dict):
        return None
    if "zero" in layout:
        return f"zero {layout['zero']} x {ranks}"
    if layout.get("sharded"):
        return "fsdp " + ("x".join(map(str, layout.get("mesh", {}).values())) or "1")
    return f"ddp {ranks}" if ranks != 1 else "one process"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def table(found: list[Checkpoint]) -> list[str]:
    """The lines of a table of at most 80 columns, and below it what is wrong with the torn ones."""
    rows = [COLUMNS, *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    torn = [f"{Path(one.path).name}: {one.problems[0]}" for one in found if one.problems]
    return [*lines, *([""] if torn else []), *torn]


def _row(one: Checkpoint) -> tuple[str, ...]:
    ranks, best = "-" if one.ranks is None else str(one.ranks), "*" if one.best else ""
    written = "-" if one.written is None else one.written.replace("T", " ").removesuffix("Z")
    return (str(one.step), one.state, best, ranks, one.layout or "-", readable(one.bytes), written)


def readable(size: float) -> str:
    """A size like ``1.4 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
