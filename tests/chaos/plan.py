"""Which faults a seed brings about, and what is found of them: everything here is the same for the same numbers."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))
"""Pods, and ranks in each."""
CONTROL_FAULTS = {
    "operator killed": 0.0,
    "operator paused": 3.0,
    "api server killed": 2.0,
    "api server paused": 3.0,
    "etcd killed": 2.0,
    "etcd paused": 3.0,
    "answers of 500": 3.0,
    "answers of 429": 3.0,
    "pod deleted": 0.0,
    "pod evicted": 0.0,
    "node deleted": 2.0,
}
"""What befalls the cluster, and for how many seconds."""
OUTCOMES = ("Succeeded", "TooManyRestarts", "BadConfiguration")


@dataclass(frozen=True)
class Trained:
    """A job of real processes."""

    number: int
    seed: int
    layout: tuple[int, int]
    faults: int


@dataclass(frozen=True)
class Simulated:
    """Jobs on simulated nodes: how each must end, and which faults meet them, with the seconds before each."""

    number: int
    seed: int
    ends: tuple[str, ...]
    faults: tuple[tuple[float, str], ...]


def trained(seed: int, jobs: int, faults: int) -> list[Trained]:
    generator = random.Random(f"{seed} trained")
    each = [faults // jobs + (number < faults % jobs) for number in range(jobs)]
    return [
        Trained(number, generator.randrange(10**6), generator.choice(LAYOUTS), count)
        for number, count in enumerate(each, 1) if count
    ]  # fmt: skip


def simulated(seed: int, jobs: int, faults: int, together: int = 5) -> list[Simulated]:
    """Rounds of up to ``together`` jobs, and their share of the faults."""
    generator = random.Random(f"{seed} simulated")
    rounds = -(-jobs // together)
    found = []
    for number in range(1, rounds + 1):
        ends = tuple(generator.choices(OUTCOMES, (4, 1, 1), k=min(together, jobs - together * (number - 1))))
        count = faults // rounds + (number <= faults % rounds)
        chosen = tuple((generator.uniform(0.5, 3.0), generator.choice(list(CONTROL_FAULTS))) for _ in range(count))
        found.append(Simulated(number, generator.randrange(10**6), ends, chosen))
    return found


class Findings:
    """What was found so far, a file each, so that a run that was interrupted goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, found: dict[str, Any]) -> None:
        aside = self._folder / f".{name}.json"
        aside.write_text(json.dumps(found, indent=1))
        aside.replace(self._folder / f"{name}.json")
