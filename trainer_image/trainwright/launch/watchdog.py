"""Decides when the ranks of a node hang: none of them has finished a step for too long.

A rank is watched from its first beat, at the end of its first step. So loading, compiling, and a script that never
reports do not count as a hang. One rank that makes progress is enough, because the ranks of a gang wait for each other.

Without a timeout it learns one: many times the longest pause between two beats so far, which holds every step,
evaluation and save, and at least :data:`SHORTEST`. What may come for the first time, and take as long as it likes (a
save, an evaluation, what another trainer than ours does), gets at least :data:`SHORTEST_ELSEWHERE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainwright.launch.nodefiles import Pulse

TIMES = 10.0
SHORTEST = 600.0
SHORTEST_ELSEWHERE = 3600.0
NAMING_SECONDS = 5.0
"""How much longer a node waits whose ranks are all within a step: the node of the rank they wait for speaks first."""
_STEPS = ("stepping", "redone")
_FETCHES = ("data",)


class Watchdog:
    """Receives the pulses of all local ranks.

    Args:
        timeout: In seconds; None to learn it, 0 for no watchdog.

    Attributes:
        timeout: The seconds that the ranks may take now.
    """

    def __init__(self, timeout: float | None) -> None:
        self._fixed = math.inf if timeout == 0 else timeout
        self.timeout = SHORTEST if self._fixed is None else self._fixed
        self._seen: tuple[int, ...] = ()
        self._moved: float | None = None
        self._longest = 0.0

    def hangs(self, pulses: Sequence[Pulse], now: float) -> bool:
        """Whether no pulse changed for longer than the timeout; ``now`` is a monotonic time in seconds."""
        beats = tuple(pulse.beats for pulse in pulses)
        if all(pulse.resting for pulse in pulses):
            self._moved = None
        elif beats != self._seen or self._moved is None:
            self._longest = max(self._longest, now - self._moved if self._moved is not None else 0.0)
            self._moved = now
        self._seen = beats
        self.timeout = self._limit(pulses)
        waits_for_others = bool(pulses) and all(pulse.phase in _STEPS for pulse in pulses)
        return self._moved is not None and now - self._moved > self.timeout + NAMING_SECONDS * waits_for_others

    def _limit(self, pulses: Sequence[Pulse]) -> float:
        if self._fixed is not None:
            return self._fixed
        trains = all(pulse.phase in (*_STEPS, *_FETCHES) for pulse in pulses)
        return max(SHORTEST if trains else SHORTEST_ELSEWHERE, TIMES * self._longest)
