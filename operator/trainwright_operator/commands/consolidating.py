"""``trainwright consolidate``: a model for ``from_pretrained`` out of a checkpoint in shards."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from trainwright.contract import UserError

DONE, INVALID = 0, 2


def main(options: Namespace) -> int:
    try:
        from trainwright.checkpoint.consolidate import consolidate
        from trainwright.checkpoint.gathered import bytes_of
    except ImportError as error:
        return _refuse(f"needs {error.name}; install trainwright[trainer,hf]")
    try:
        size = bytes_of(options.max_shard_size)
    except ValueError as error:
        return _refuse(f"--max-shard-size: {error}")
    try:
        files = consolidate(Path(options.checkpoint), Path(options.output), size)
    except UserError as error:
        return _refuse(str(error))
    for file in files:
        print(file)
    return DONE


def _refuse(problem: str) -> int:
    print(f"trainwright consolidate: {problem}", file=sys.stderr)
    return INVALID
