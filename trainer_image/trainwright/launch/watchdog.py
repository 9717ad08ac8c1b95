"""Decides when the ranks of a node hang: none of them has finished a step for too long.

A rank is watched from its first beat, at the end of its first step. So loading, compiling, and a script that never
reports do not count as a hang. One rank that makes progress is enough, because the ranks of a gang wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainwright.launch.nodefiles import Pulse


class Watchdog:
    """Receives the pulses of all local ranks; ``timeout`` in seconds, None for no watchdog."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._seen: tuple[int, ...] = ()
        self._moved: float | None = None

    def hangs(self, pulses: Sequence[Pulse], now: float) -> bool:
        """Whether no pulse changed for longer than the timeout; ``now`` is a monotonic time in seconds."""
        if self.timeout is None:
            return False
        beats = tuple(pulse.beats for pulse in pulses)
        if all(pulse.resting for pulse in pulses):
            self._moved = None
        elif beats != self._seen or self._moved is None:
            self._moved = now
        self._seen = beats
        return self._moved is not None and now - self._moved > self.timeout
