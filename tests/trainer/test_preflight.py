"""``spec.preflight`` with real launchers: what is wrong with a rank is found before the script starts, and named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.gangs import Gang
from trainwright.contract import ExitCode
from trainwright.launch.nodefiles import Pulse
from trainwright.launch.preflight import PreflightFailed, Rank, Settings, neighbours
from trainwright.launch.preflight_round import STILL_SECONDS, Checks, Deadline
from trainwright.launch.supervisor import Stop
from trainwright.launch.watchdog import NAMING_SECONDS

LONGEST = 400.0
"""Seconds that a busy machine may take for a gang."""
SCRIPT = """
import os, torch.distributed as dist
assert not os.environ.get("FAULT"), "the script must not start"
dist.init_process_group("gloo")
dist.barrier()
open(f"trained-{dist.get_rank()}", "w").write("yes")
dist.destroy_process_group()
"""
BREAK = """
import os, sys, time
if "trainwright.launch.preflight" in sys.orig_argv and os.environ.get("RANK") == "1" and "FAULT" in os.environ:
    import torch
    multiply = torch.Tensor.__matmul__
    def broken(first, second):
        product = multiply(first, second)
        if os.environ["FAULT"] == "wrong":
            product[3, 5] += 1
        time.sleep({"slow": 1.0, "stuck": 1000}.get(os.environ["FAULT"], 0))
        return product
    torch.Tensor.__matmul__ = broken
"""


def gang(folder: Path, fault: str = "", seconds: int = 600, slowdown: float = 5.0, **options: Any) -> Gang:
    """Rank 1 is the broken one. Processes on a busy machine differ by more than devices do, so much is allowed."""
    (folder / "sitecustomize.py").write_text(BREAK)
    pods = Gang(folder, SCRIPT, preflight={"timeoutSeconds": seconds, "maxSlowdown": slowdown}, **options)
    pods.environment["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    pods.environment |= {"FAULT": fault} if fault else {}
    return pods


def test_the_script_starts_when_all_ranks_are_well(tmp_path: Path) -> None:
    with gang(tmp_path, nodes=2, slowdown=0) as pods:
        assert pods.run(LONGEST) == [0, 0], pods.log(0) + pods.log(1)
        assert (tmp_path / "trained-0").exists()
        assert (tmp_path / "trained-1").exists()
        assert "preflight: a product of matrices took" in pods.log(0)
        assert "preflight: a message to a neighbour took" in pods.log(0)
        assert "preflight:" not in pods.log(1)
        assert pods.word(1).error is None


def test_a_device_that_computes_wrongly_is_named_by_its_own_node(tmp_path: Path) -> None:
    with gang(tmp_path, "wrong", nodes=2) as pods:
        assert pods.run(LONGEST) == [1, 1]
        words = [pods.word(node) for node in (0, 1)]
    assert words[1].error is not None
    assert "preflight: rank 1 on" in words[1].error
    assert "1 of 262144 elements of a product of matrices are wrong on its CPU" in words[1].error
    assert [word.rank for word in words] == [1, 1]
    assert [word.ended_by for word in words] == ["peer", "script"], "the other node's failure is not its own"


def test_a_rank_far_slower_than_the_others_fails(tmp_path: Path) -> None:
    with gang(tmp_path, "slow", nodes=1, per_node=3) as pods:
        assert pods.run(LONGEST) == [1]
        assert "times as long for a product of matrices as the median of the others" in str(pods.word().error)
        assert pods.word().rank == 1


def test_a_rank_that_stands_still_ends_within_the_time_limit(tmp_path: Path) -> None:
    with gang(tmp_path, "stuck", seconds=4, nodes=1, per_node=2) as pods:
        assert pods.run(LONGEST) == [ExitCode.HANG]
        assert "within 4 s (preflight.timeoutSeconds)" in str(pods.word().error)
        assert "stacks of rank 1" in pods.log()


def test_a_stop_is_obeyed_during_the_checks(tmp_path: Path) -> None:
    with gang(tmp_path, "stuck", nodes=1, per_node=2) as pods:
        pods.start()
        while not list(tmp_path.glob("trainwright-*/preflight/heartbeat-1")):
            assert pods.launchers[0].poll() is None, pods.log()
        pods.signal(0)
        assert pods.wait(LONGEST) == [ExitCode.PREEMPTED]


NOW = 1000.0


def pulses(*stages_and_beats: tuple[int, int]) -> list[Pulse]:
    return [Pulse(beats, stage, False) for stage, beats in stages_and_beats]


def deadline(*at: tuple[float, list[Pulse]]) -> tuple[Deadline, list[bool]]:
    limit = Deadline(100.0)
    return limit, [limit.hangs(seen, NOW + seconds) for seconds, seen in at]


def test_the_node_of_a_rank_that_waits_for_nobody_speaks_first() -> None:
    well, stuck = pulses((3, 1), (3, 1)), pulses((3, 1), (1, 1))
    _, said = deadline((0, stuck), (99, pulses((3, 9), (1, 9))), (101, pulses((3, 10), (1, 10))))
    assert said == [False, False, True]
    late = 100 + NAMING_SECONDS
    _, said = deadline((0, well), (late - 1, pulses((3, 9), (3, 9))), (late + 1, pulses((3, 10), (3, 10))))
    assert said == [False, False, True]


def test_a_rank_without_a_beat_is_the_one_to_blame() -> None:
    before = 101 - STILL_SECONDS - 1
    limit, said = deadline((0, pulses((3, 1), (3, 1))), (before, pulses((3, 2), (3, 2))), (101, pulses((3, 3), (3, 2))))
    assert said[-1]
    assert limit.to_blame(pulses((3, 3), (3, 2)), NOW + 101) == 1


def test_where_all_wait_for_each_other_nobody_is_blamed(tmp_path: Path) -> None:
    seen = pulses((4, 1), (3, 1))
    limit, _ = deadline((101, seen))
    checks = Checks(tmp_path, 30, limit, Stop())
    checks.started({0: 1, 1: 2}, first_rank=2)
    checks._pulses = lambda: seen  # type: ignore[method-assign]
    end = checks.hang(NOW + 101)
    assert end.rank is None
    assert "the ranks did not sum over all ranks within 100 s" in str(end.error)
    seen[1] = Pulse(1, 1, False)
    end = checks.hang(NOW + 101)
    assert (end.code, end.rank) == (ExitCode.HANG, 3)
    assert "did not multiply matrices within 100 s" in str(end.error)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
def test_neighbours_of_a_turn_are_pairs(size: int) -> None:
    turns = list(zip(*(neighbours(rank, size) for rank in range(size)), strict=True))
    links = {frozenset((rank, other)) for turn in turns for rank, other in enumerate(turn) if other is not None}
    assert all(turn[other] == rank for turn in turns for rank, other in enumerate(turn) if other is not None)
    assert len(links) == (size if size > 2 else 1)


@pytest.mark.parametrize(
    ("seconds", "limit", "fails"),
    [
        ([0.1, 0.4, 0.1], 3.0, True),
        ([0.1, 0.2, 0.1], 3.0, False),
        ([0.001, 0.004, 0.001], 3.0, False),
        ([0.1, 0.4, 0.1], 0.0, False),
        ([0.4, 0.1, 0.4], 3.0, False),
    ],
)
def test_a_rank_is_judged_by_the_median_of_the_others(seconds: list[float], limit: float, fails: bool) -> None:
    rank = Rank(Settings(100.0, limit), rank=1, size=3, local_rank=1)
    if fails:
        with pytest.raises(PreflightFailed, match=r"rank 1 on .* takes 4\.0 times as long for x as the median"):
            rank.judge("x", seconds)
    else:
        rank.judge("x", seconds)
