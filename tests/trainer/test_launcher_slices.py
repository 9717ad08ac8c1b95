"""Slices of one gang: each counts its own hosts, and the launchers put them into one world."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.gangs import Gang

MEET = """
import json, os, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = torch.tensor([dist.get_rank()])
seen = [torch.zeros_like(rank) for _ in range(dist.get_world_size())]
dist.all_gather(seen, rank)
with open(f"seen-{dist.get_rank()}", "w") as out:
    json.dump([one.item() for one in seen], out)
dist.destroy_process_group()
"""


class Slices(Gang):
    """Two slices of one host each: to both of them, their host is the first."""

    def _environment(self, node: int) -> dict[str, str]:
        return {
            **super()._environment(node),
            "PET_NODE_RANK": "0",
            "TRAINWRIGHT_FIRST_NODE_RANK": str(node),
        }


def test_the_hosts_of_all_slices_are_one_world(tmp_path: Path) -> None:
    with Slices(tmp_path, MEET, nodes=2, per_node=2) as gang:
        assert gang.run() == [0, 0], gang.log(1)
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.rglob("seen-*")}
    assert found == {f"seen-{rank}": [0, 1, 2, 3] for rank in range(4)}
