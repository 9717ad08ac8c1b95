"""Limits writes of progress: an interval per job, and a budget for all jobs without bursts.

Many jobs often become due together, such as after a start of the operator or of a sweep. Each reserves a slot in the
first second that has one left, so that writes are spread evenly; with many jobs, intervals get longer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from datetime import datetime
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Pace(Generic[Key]):
    """``interval``: the minimum seconds between two writes of a key; ``budget``: writes per second of all keys."""

    def __init__(self, interval: float, budget: float) -> None:
        self._interval = interval
        self._span = max(1.0, 1.0 / budget)
        self._turns_in_span = max(1, math.floor(budget * self._span))
        self._written: dict[Key, float] = {}
        self._turns: dict[Key, float] = {}
        self._taken: dict[int, int] = {}
        self._begun = 0

    def wait(self, key: Key, now: datetime, least: float = 0.0) -> float:
        """Seconds until progress of ``key`` may be written, 0 if it may now; reserves the slot.

        A new slot is at least ``least`` seconds away.
        """
        seconds = now.timestamp()
        turn = self._turns.get(key)
        if turn is None:
            due = self._written.get(key, -math.inf) + self._interval
            turn = self._turns[key] = self._free_turn(max(seconds + least, due), seconds)
        return max(0.0, turn - seconds)

    def written(self, key: Key, now: datetime) -> None:
        """Record that the status of ``key`` was written with the latest progress."""
        self._written[key] = now.timestamp()
        self._turns.pop(key, None)

    def forget(self, key: Key) -> None:
        """Forget ``key``, which was deleted or has finished."""
        self._written.pop(key, None)
        self._turns.pop(key, None)

    def _free_turn(self, earliest: float, now: float) -> float:
        self._drop_past(int(now / self._span))
        span = int(earliest / self._span)
        while self._taken.get(span, 0) >= self._turns_in_span:
            span += 1
        taken = self._taken.get(span, 0)
        self._taken[span] = taken + 1
        return max(earliest, (span + taken / self._turns_in_span) * self._span)

    def _drop_past(self, present: int) -> None:
        if present > self._begun:
            self._begun = present
            self._taken = {span: taken for span, taken in self._taken.items() if span >= present}
