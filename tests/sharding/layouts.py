"""Resumes a run in every layout from the checkpoints of every layout, and prints how far the ends are apart.

    make layouts

Each layout trains a small GPT-2 on the same batches and saves at half time. Then each resumes from the checkpoint of
each. A cell is the largest difference of any weight or optimizer state from the end of the unbroken run of the layout
that wrote the checkpoint. On the diagonal it is 0.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from trainer.world import in_world

HSDP = {"fsdp": True, "parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 2}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "ddp 2": (2, {}),
    "fsdp 2": (2, {"fsdp": True}),
    "fsdp 2 whole": (2, {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}),
    "fsdp 4": (4, {"fsdp": True}),
    "fsdp 2x2": (4, HSDP),
}
OPTIMIZERS = {"sgd": 1e-1, "adamw_torch": 1e-3}
LIMITS = {"sgd": 1e-5, "adamw_torch": 1e-4}
LONGEST = 900.0


def of_size(argument: tuple[Path, int, bool]) -> dict[Any, Any]:
    """The runs of every layout of one number of ranks: unbroken ones, or from the checkpoints of all layouts."""
    from trainer.test_sharded_checkpoint import HALF, run

    warnings.simplefilter("ignore")
    folder, size, resumes = argument
    ends = {}
    for optimizer, rate in OPTIMIZERS.items():
        for name, (ranks, options) in LAYOUTS.items():
            given = {**options, "optim": optimizer, "learning_rate": rate}
            if ranks != size:
                continue
            if not resumes:
                ends[optimizer, name] = run(folder / optimizer / name, size, **given)
                continue
            for source in LAYOUTS:
                checkpoint = folder / optimizer / source / f"checkpoint-{HALF}"
                ends[optimizer, source, name] = run(
                    folder / "ends" / optimizer / source / name, size, checkpoint, **given
                )
    return ends


def main() -> int:
    from trainer.test_sharded_checkpoint import distance

    with tempfile.TemporaryDirectory() as name:
        ends: list[dict[Any, Any]] = []
        for resumes in (False, True):
            found: dict[Any, Any] = {}
            for size in sorted({ranks for ranks, _ in LAYOUTS.values()}):
                found |= in_world(size, "sharding.layouts:of_size", (Path(name), size, resumes), LONGEST)[0]
            ends.append(found)
    unbroken, resumed = ends
    fails = 0
    for optimizer, limit in LIMITS.items():
        print(f"\n{optimizer}: from (row) to (column), largest difference")
        print(" " * 14 + "".join(f"{column:>14}" for column in LAYOUTS))
        for row in LAYOUTS:
            apart = [distance(resumed[optimizer, row, column], unbroken[optimizer, row]) for column in LAYOUTS]
            print(f"{row:14}" + "".join(f"{value:14.1e}" for value in apart))
            fails += sum(value > (0 if column == row else limit) for column, value in zip(LAYOUTS, apart, strict=True))
    print("\nall within the limits" if not fails else f"\n{fails} cells are beyond the limits")
    return int(fails > 0)


if __name__ == "__main__":
    sys.exit(main())
