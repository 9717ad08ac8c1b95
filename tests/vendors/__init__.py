"""A table of cases for each vendor, in a module of the vendor's name; ``pool_cases`` puts them together.

A module has POOLS as their admins write them and CASES of jobs on them. It may have REFUSALS, jobs that do not fit one
of the pools (the pool, what ``accelerator`` asks, the message), and WRONG, pools that cannot be (one of the table, what
is changed of it, the message).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """``ranks`` are those of a pod; ``first`` and ``last`` what the environment of these two pods has."""

    pool: str
    nodes: int | None
    per_node: int | None
    pods: int
    ranks: int
    resources: dict[str, str] = field(default_factory=dict)
    selector: dict[str, str] = field(default_factory=dict)
    toleration: str | None = None
    first: dict[str, str] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    image: str = "cpu"
