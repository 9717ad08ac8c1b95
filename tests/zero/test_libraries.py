"""TRL's SFT by ``python -m trainwright.overlay`` on two ranks under ZeRO 3, against one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest
from safetensors.torch import load_file

TESTS = Path(__file__).parent.parent
PYTHON = TESTS.parent / ".venv-compat" / "bin" / "python"
MEASURED = ("_runtime", "_per_second", "total_flos")
BY_BATCH = ("eval_mean_token_accuracy", "eval_entropy")
"""TRL takes its means over the batches of all ranks at a time, larger ones than one process has."""

pytest.importorskip("deepspeed", reason="DeepSpeed has an environment of its own: make deepspeed")
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="TRL has an environment of its own: make compat-env")


def sft_on(ranks: int, models: Path, out: Path, layout: dict[str, object]) -> None:
    """Run the script in the environment of TRL, with the DeepSpeed of this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(TESTS.parent / "trainer_image"), ".", sysconfig.get_path("purelib")])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "PYTHONPATH": paths}
    world |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    world |= {"LAYOUT": json.dumps(layout), "DS_ACCELERATOR": "cpu"}
    command = [str(PYTHON), "-m", "trainwright.overlay", "compat/sft_on_ranks.py", str(models), str(out)]
    running = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(subprocess.Popen(command, cwd=TESTS, env={**os.environ, **world, **own}))
    try:
        assert [process.wait(600) for process in running] == [0] * ranks
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.timeout(1300)
def test_sft_under_zero_3_logs_what_one_process_does(tmp_path: Path) -> None:
    """The configuration has no batch sizes, and transformers partitions the model when it reads it."""
    make = f"from pathlib import Path; from compat import tiny; tiny.make(Path({str(tmp_path)!r}))"
    subprocess.run([str(PYTHON), "-c", make], cwd=TESTS, check=True)
    stage = {"deepspeed": {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}}
    for ranks in (1, 2):
        sft_on(ranks, tmp_path, tmp_path / str(ranks), stage)
    for kind, weights in (("whole", "model"), ("adapters", "adapter_model")):
        one, two = (json.loads((tmp_path / ranks / kind / "log.json").read_text()) for ranks in "12")
        assert any("trainwright" in name for name in two["lineage"])
        assert (one["sharded"], two["sharded"]) == (False, True)
        assert len(one["log"]) == len(two["log"]) == 9
        for a, b in zip(one["log"], two["log"], strict=True):
            kept = [name for name in a if not name.endswith(MEASURED) and name not in BY_BATCH]
            assert [b[name] for name in kept] == pytest.approx([a[name] for name in kept], rel=1e-5), kept
        a, b = (load_file(tmp_path / ranks / kind / "model" / f"{weights}.safetensors") for ranks in "12")
        assert a.keys() == b.keys()
        apart = max(float((a[name] - b[name]).abs().max()) for name in a)
        print(f"TRL SFT, {kind}: weights {apart:.1e} apart")
        assert apart < 1e-5
