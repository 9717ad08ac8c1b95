"""Compares what two runs of one job left: the weights bit by bit, and the log step by step."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright_operator.report.reading import StateReader
from trainwright_operator.report.run import STATE, newest_state

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_OF_TIME = ("_runtime", "_per_second", "_preparation_time")
"""Metrics that differ between any two runs."""
_CHUNK = 1 << 22
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class Alike:
    """``same`` of ``total`` things are identical; ``first`` names one that is not, and why."""

    what: str
    same: int
    total: int
    first: str = ""

    @property
    def holds(self) -> bool:
        return self.same == self.total > 0

    def __str__(self) -> str:
        if self.total == 0:
            return f"no {self.what} to compare"
        return f"{self.same} of {self.total} {self.what} identical" + (f"; {self.first}" if self.first else "")


def weights(one: Path, other: Path) -> Alike:
    """Every tensor of the models in the two outputs; of their newest checkpoints if a script leaves no model."""
    left, right = dict(_tensors(one)), dict(_tensors(other))
    if not left and not right:
        left, right = (dict(_tensors(found)) if (found := _newest(folder)) else {} for folder in (one, other))
    return _compared("tensors", left, right)


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, the newest last; a script may write them to a folder below its output."""
    places = (Path(root, name) for root, names, _ in os.walk(output) for name in names if _CHECKPOINT.fullmatch(name))
    return sorted(places, key=_written)


def _written(folder: Path) -> tuple[float, int]:
    try:
        written = folder.stat().st_mtime
    except OSError:  # deleted in the meantime
        written = 0.0
    return written, int(folder.name.rpartition("-")[2])


def _newest(output: Path) -> Path | None:
    return next(reversed(checkpoints(output)), None)


def losses(one: Path, other: Path) -> Alike:
    """Every metric of every step of the log, but those that measure time."""
    return _compared("logged values", dict(_logged(one)), dict(_logged(other)))


def _compared(what: str, left: dict[str, Any], right: dict[str, Any]) -> Alike:
    names = list({**left, **right})
    different = [name for name in names if left.get(name) != right.get(name)]
    first = ""
    if different:
        name = different[0]
        missing = "the disturbed" if name not in right else "the undisturbed" if name not in left else ""
        first = f"{name} is not in {missing} run" if missing else f"{name} differs"
    return Alike(what, len(names) - len(different), len(names), first)


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """``file:tensor`` -> type, shape and a digest of its bytes; a file that is no safetensors counts as one."""
    for path in sorted({path for pattern in WEIGHTS for path in folder.rglob(pattern)}):
        place = path.relative_to(folder)
        if any(part.startswith(("checkpoint-", ".", "_")) for part in place.parts):
            continue
        if path.suffix != ".safetensors":
            yield str(place), _digest(path, 0, path.stat().st_size)
            continue
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield f"{place}:{name}", (entry["dtype"], entry["shape"], _digest(path, 8 + size + start, end - start))


def _digest(path: Path, start: int, length: int) -> str:
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (chunk := file.read(min(_CHUNK, length))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()


def _logged(folder: Path) -> Iterator[tuple[str, Any]]:
    below = (checkpoint / STATE for checkpoint in reversed(checkpoints(folder)))
    path = newest_state(folder) or next((state for state in below if state.is_file()), None)
    if path is None:
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for row in StateReader(file).rows():
            if "train_runtime" in row:  # the last row: sums and times of this process
                continue
            for name, value in row.items():
                if name != "step" and not name.endswith(_OF_TIME):
                    is_nan = isinstance(value, float) and math.isnan(value)
                    yield f"{name} at step {row.get('step')}", "NaN" if is_nan else value
