"""Which process runs what: two ranks in one pair for all architectures, the rest in processes beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from sweep import resuming, runs
from sweep.architectures import Architecture
from sweep.verdict import Line, judged
from trainer.world import in_world

LONGEST = 3600.0


def by_itself(architecture: Architecture) -> tuple[Any, Any]:
    """All that one process tells of an architecture."""
    return runs.caught(runs.alone, architecture), resuming.resumed(architecture)


def over_ranks(chosen: list[Architecture]) -> dict[str, Any]:
    """By key, what each rank saw; or why it saw nothing."""
    ranks = in_world(2, "sweep.runs:on_two_ranks", chosen, longest=LONGEST)
    seen = {one.key: [rank[one.key] for rank in ranks] for one in chosen}
    return {key: next((one for one in each if isinstance(one, str)), each) for key, each in seen.items()}


def swept(chosen: list[Architecture]) -> Iterator[Line]:
    """The lines of the table, each as soon as it is known: the ranks wait for each other, and the others fill in."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        each = processes.map(by_itself, chosen)
        together = over_ranks(chosen)
        for one, (alone, resumed) in zip(chosen, each, strict=True):
            yield judged(one, alone, together[one.key], resumed)


def swept_here(chosen: list[Architecture]) -> list[Line]:
    """The same, with this process for the runs of one process."""
    together = over_ranks(chosen)
    return [judged(one, alone, together[one.key], resumed) for one in chosen for alone, resumed in [by_itself(one)]]
