"""What the arguments say of a process among several: two real ranks over gloo, on one node or on two."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright.arguments import ArgumentError, TrainingArguments
from trainwright.arguments.enums import ParallelMode

ASK = """
import copy, json, logging, os, pickle, sys, time
from pathlib import Path
from trainwright.arguments import TrainingArguments
from trainwright.launch.entry import finish

folder = Path(sys.argv[1])
args = TrainingArguments(**json.loads(sys.argv[2]))
names = ("world_size", "process_index", "local_process_index", "should_save", "should_log", "n_gpu", "train_batch_size")
told = {name: getattr(args, name) for name in names}
told["parallel_mode"] = args.parallel_mode.value
told["device"] = str(args.device)
told["level"] = args.get_process_log_level()

import torch.distributed as dist
told["backend"] = dist.get_backend()
told["timeout"] = dist.distributed_c10d._get_default_group()._get_backend(args.device).options._timeout.total_seconds()
told["copies"] = [copy.deepcopy(args) == args, pickle.loads(pickle.dumps(args)).world_size]

for local, word in ((True, "local"), (False, "global")):
    with args.main_process_first(local=local, desc="counting"):
        if args.process_index == 0:
            time.sleep(0.3)
            (folder / word).touch()
        told[word] = (folder / word).exists()
(folder / f"told-{args.process_index}").write_text(json.dumps(told))
dist.barrier()
finish()
"""


def ask_two_ranks(folder: Path, local_ranks: tuple[int, int], **values: Any) -> list[dict[str, Any]]:
    """What each rank says of itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(folder), json.dumps({"use_cpu": True, **values})],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(local)},
        )
        for rank, local in enumerate(local_ranks)
    ]
    try:
        assert [rank.wait(100) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [json.loads((folder / f"told-{rank}").read_text()) for rank in (0, 1)]


def test_two_nodes_save_and_log_as_the_arguments_of_each_node_say(tmp_path: Path) -> None:
    first, second = ask_two_ranks(
        tmp_path,
        (0, 0),
        save_on_each_node=True,
        log_on_each_node=False,
        log_level="info",
        log_level_replica="error",
        ddp_timeout=77,
    )
    assert [told["process_index"] for told in (first, second)] == [0, 1]
    assert [told["should_save"] for told in (first, second)] == [True, True]
    assert [told["should_log"] for told in (first, second)] == [True, False]
    assert [told["level"] for told in (first, second)] == [20, 40]
    assert [told["timeout"] for told in (first, second)] == [77, 77]
    assert (first["world_size"], first["parallel_mode"], first["backend"]) == (2, "distributed", "gloo")
    assert first["device"].startswith("cpu")
    assert (first["n_gpu"], first["train_batch_size"]) == (0, 8)
    assert [told["global"] for told in (first, second)] == [True, True]
    assert first["copies"] == [True, 2]


def test_only_the_first_rank_of_a_node_saves_and_logs(tmp_path: Path) -> None:
    first, second = ask_two_ranks(
        tmp_path, (0, 1), log_level="info", log_level_replica="error", ddp_backend="gloo", use_cpu=False
    )
    assert [told["local_process_index"] for told in (first, second)] == [0, 1]
    assert [told["should_save"] for told in (first, second)] == [True, False]
    assert [told["should_log"] for told in (first, second)] == [True, False]
    assert [told["level"] for told in (first, second)] == [20, 40]
    assert [told["local"] for told in (first, second)] == [True, True]


def test_a_backend_that_is_not_available_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in gang.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match=r"ddp_backend: .*mpi is not available"):
        _ = TrainingArguments(ddp_backend="mpi", ddp_timeout=1).world_size


def test_a_backend_does_not_matter_to_one_process() -> None:
    args = TrainingArguments(use_cpu=True, ddp_backend="gloo")
    assert (args.world_size, args.parallel_mode) == (1, ParallelMode.NOT_PARALLEL)


def test_one_process_is_rank_0_of_1_and_saves_and_logs() -> None:
    args = TrainingArguments(use_cpu=True, per_device_train_batch_size=3, per_device_eval_batch_size=5)
    assert (args.world_size, args.process_index, args.local_process_index) == (1, 0, 0)
    assert args.parallel_mode is ParallelMode.NOT_PARALLEL
    assert (args.device.type, args.train_batch_size, args.eval_batch_size) == ("cpu", 3, 5)
    assert args.should_save
    assert args.should_log
    with args.main_process_first():
        pass


def test_the_state_of_the_program_is_kept_when_asked() -> None:
    from accelerate.state import PartialState

    mine = PartialState(cpu=True)
    PartialState._shared_state["marker"] = True
    try:
        kept = TrainingArguments(use_cpu=True, accelerator_config={"use_configured_state": True})
        assert kept.distributed_state.marker
        anew = TrainingArguments(use_cpu=True)
        assert anew.device == mine.device
        assert not hasattr(anew.distributed_state, "marker")
    finally:
        PartialState._reset_state()


def test_a_subclass_may_set_up_its_device_by_itself() -> None:
    """Under the name that transformers gives it, which is also how scripts ask for it; and say how many GPUs it has."""

    class Own(TrainingArguments):
        @cached_property
        def _setup_devices(self) -> Any:
            asked.append("device")
            return torch.device("meta")

    asked: list[str] = []
    args = Own(use_cpu=True)
    assert (args.device, args._setup_devices) == (torch.device("meta"), torch.device("meta"))
    assert asked == ["device"]
    args = TrainingArguments(use_cpu=True, per_device_train_batch_size=3)
    assert (args._setup_devices.type, args._n_gpu, args.n_gpu) == ("cpu", 0, 0)
    args._n_gpu = 1
    assert (args.n_gpu, args.train_batch_size) == (1, 3)
    assert copy.deepcopy(args).n_gpu == 0  # of this process alone
    assert (args.deepspeed_plugin, args.fsdp_plugin_args) == (None, None)
