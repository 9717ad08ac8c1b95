"""The memory that a rank is expected to need: the job estimates it before it trains, and the reporter sends it."""

from __future__ import annotations

from dataclasses import asdict

from trainwright.footprint import Estimate

_expected: list[Estimate] = []
"""One, once it is known."""


def announce(estimate: Estimate) -> None:
    _expected[:] = [estimate]


def forget() -> None:
    _expected.clear()


def expected() -> dict[str, int] | None:
    """As :attr:`trainwright.contract.Progress.memory`; None if it was not estimated."""
    return next(({name: round(size) for name, size in _parts(one).items()} for one in _expected), None)


def _parts(estimate: Estimate) -> dict[str, float]:
    parts = {name: size for name, size in asdict(estimate).items() if name != "start"}
    return {"estimate": estimate.total, **parts}
