"""The curves of a run, thinned while they are read: however long the run, a curve keeps its peaks and little memory.

A long curve is divided into buckets of equal width, and the lowest and the highest point of each bucket are kept.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

Point = tuple[float, float]

BUCKETS = 360
"""Buckets of a curve on a page with one run."""
_RAW = 20
"""A curve is thinned when it has this many points for each bucket."""
TOTALS = ("train_runtime", "train_loss")
"""A log entry with one of these closes a run, and belongs to no step."""
_NO_CURVES = ("step", "epoch", "anomalies", "total_flos", "num_input_tokens_seen")
_NO_CURVE_ENDS = ("_runtime", "_steps_per_second", "_preparation_time")
"""Metrics that say nothing about the course of a run."""


class Series:
    """One curve. ``lost`` are the places of values that are not finite."""

    def __init__(self, buckets: int = BUCKETS) -> None:
        self._buckets, self._limit = buckets, buckets * _RAW
        self._points: list[Point] = []
        self.lost: list[float] = []
        self.count = 0

    def add(self, x: float, y: float) -> None:
        """Add the next value. One at an earlier place replaces what follows: a restart trained it again."""
        points = self._points
        if points and x < points[-1][0]:
            del points[bisect_left(points, x, key=_x) :]
            self.lost = [place for place in self.lost if place < x]
        self.count += 1
        if not math.isfinite(y):
            self.lost.append(x)
            return
        points.append((x, y))
        if len(points) > self._limit:
            self._points = thinned(points, self._buckets)

    def points(self) -> list[Point]:
        """The thinned curve: at most two points for each bucket, besides the first and the last."""
        return thinned(self._points, self._buckets)

    @property
    def first(self) -> Point | None:
        return self._points[0] if self._points else None

    @property
    def last(self) -> Point | None:
        return self._points[-1] if self._points else None

    @property
    def lowest(self) -> Point | None:
        return min(self._points, key=_y, default=None)

    @property
    def highest(self) -> Point | None:
        return max(self._points, key=_y, default=None)


def _x(point: Point) -> float:
    return point[0]


def thinned(points: list[Point], buckets: int) -> list[Point]:
    """The first and last point, and the lowest and highest of each bucket, in order."""
    if len(points) <= 2 * buckets:
        return list(points)
    left, right = points[0][0], points[-1][0]
    scale = buckets / (right - left) if right > left else 0.0
    kept, start, bucket = [points[0]], 0, 0
    for index, point in enumerate(points):
        here = int((point[0] - left) * scale)
        if here != bucket:
            kept += _extremes(points, start, index)
            start, bucket = index, here
    kept += _extremes(points, start, len(points))
    if kept[-1] is not points[-1]:
        kept.append(points[-1])
    return kept[1:] if kept[0] is kept[1] else kept


def _extremes(points: list[Point], start: int, end: int) -> list[Point]:
    inside = points[start:end]
    low, high = min(inside, key=_y), max(inside, key=_y)
    if low is high:
        return [low]
    return [low, high] if low[0] <= high[0] else [high, low]


def _y(point: Point) -> float:
    return point[1]


class Curves:
    """All curves of a run, by the names of the log. ``axis`` is ``step`` or ``epoch``.

    Args:
        steps_per_epoch: Places the rows of a log without steps; None if unknown.
    """

    def __init__(self, axis: str = "step", buckets: int = BUCKETS, steps_per_epoch: float | None = None) -> None:
        self.axis, self.steps_per_epoch = axis, steps_per_epoch
        self.series: dict[str, Series] = {}
        self.totals: dict[str, float] = {}
        self.rows = self.unplaced = 0
        self.end = -math.inf
        self._buckets = buckets

    def add(self, row: Mapping[str, Any], after: float = -math.inf) -> None:
        """Add one row of a log, unless its place is not after ``after``."""
        if "anomaly" in row:  # what went wrong with a step, not a value of it
            return
        place = self.place(row)
        if place is None:
            self.unplaced += 1
            return
        if place <= after:
            return
        self.rows += 1
        self.end = max(self.end, place)
        if TOTALS[0] in row or TOTALS[1] in row:
            self.totals |= dict(_numbers(row))
            return
        for name, value in _numbers(row):
            series = self.series.get(name)
            if series is None:
                if name.endswith(_NO_CURVE_ENDS):
                    continue
                series = self.series[name] = Series(self._buckets)
            series.add(place, value)

    def place(self, row: Mapping[str, Any]) -> float | None:
        known = _number(row.get(self.axis))
        if known is not None or self.axis == "epoch" or self.steps_per_epoch is None:
            return known
        epoch = _number(row.get("epoch"))
        return None if epoch is None else float(round(epoch * self.steps_per_epoch))


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of a row; JSON has no NaN, so null stands for it."""
    for name, value in row.items():
        if name in _NO_CURVES:
            continue
        if type(value) is float:
            yield name, value
        elif value is None:
            yield name, math.nan
        elif (number := _number(value)) is not None:
            yield name, number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
