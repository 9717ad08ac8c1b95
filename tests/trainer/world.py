"""Runs a function on several real ranks (processes that talk over gloo), and hands back what each returned."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainwright.launch.entry import finish

LONGEST = 120


def in_world(size: int, target: str, argument: Any = None, longest: float = LONGEST) -> list[Any]:
    """``target`` is ``module:function``, with one argument; the results are in the order of the ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "argument").write_bytes(pickle.dumps(argument))
        command = [sys.executable, "-m", "trainer.world", target, name, str(size)]
        ranks = [subprocess.Popen([*command, str(rank)], env=_environment(rank, size)) for rank in range(size)]
        try:
            codes = [rank.wait(longest) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        assert codes == [0] * size, f"exit codes of the ranks: {codes}"
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]


def _environment(rank: int, size: int) -> dict[str, str]:
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "OMP_NUM_THREADS": 1, "PYTHONPATH": paths}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}  # accelerate asks for them; the ranks met by a file
    return {**os.environ, **{key: str(value) for key, value in own.items()}}


def _main(target: str, folder: Path, size: int, rank: int) -> None:
    import torch.distributed

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    module, _, function = target.partition(":")
    argument = pickle.loads((folder / "argument").read_bytes())
    result = getattr(importlib.import_module(module), function)(argument)
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    torch.distributed.barrier()
    finish()


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
