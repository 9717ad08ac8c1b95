"""Runs the sweep and prints its table; ends with 1 where a promise does not hold.

    cd tests && python -m sweep [NAME ...]

A name takes the architectures whose names hold it.
"""

from __future__ import annotations

import os
import sys
import time

# For the processes that start from here: they fill the machine, and what torch warns of is no news to anybody.
os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}

from sweep.processes import swept
from sweep.table import architectures
from sweep.verdict import HEADINGS, row


def main(names: list[str]) -> int:
    began = time.monotonic()
    chosen = architectures(names)
    print(row({name: name for name in HEADINGS}), flush=True)
    broken = 0
    for line in swept(chosen):
        print(row(line.cells), flush=True)
        broken += bool(line.broken)
    classes = len({one.class_name for one in chosen})
    print(f"{len(chosen)} lines, {classes} architectures, {broken} broken, {time.monotonic() - began:.0f} s")
    return 1 if broken or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
