"""Which charts a report has, and the geometry of each: scales, ticks and paths in units of the plot area, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainwright_operator.report.run import Run
from trainwright_operator.report.series import Point, Series

_LOG_RATIO = 30.0
"""A chart of positive values is logarithmic if the highest is this many times the lowest."""
_LINEAR = ("learning_rate", "epoch")
_TITLES = {
    "loss": "Loss",
    "eval_loss": "Evaluation loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "peak_memory_gib": "Peak memory in GiB",
    "mfu": "Model FLOPs utilization",
}
_ORDER = ("loss", "eval_loss", "evaluation", "learning_rate", "grad_norm", "speed", "memory", "other")
_FROM_ZERO = (_ORDER.index("speed"), _ORDER.index("memory"))
"""Amounts: their charts begin at zero, so that noise looks like noise."""
_MAX_CHARTS = 36
"""More metrics are named, and not drawn."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart. ``style`` numbers its colour and dashes; ``dotted`` marks each value."""

    label: str
    run: int
    style: int
    series: Series
    points: list[Point]
    dotted: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line: an attempt of a run that began at ``x``."""

    x: float
    label: str
    run: int


@dataclass(frozen=True)
class Scale:
    """Maps values to 0 (low) to 1 (high)."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Chart:
    """``key`` names it in the page."""

    key: str
    title: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    x: Scale
    y: Scale
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]


def charts_of(runs: Sequence[Run]) -> tuple[list[Chart], list[str]]:
    """The charts, and the names of metrics beyond the limit."""
    groups: dict[tuple[int, str], list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.curves.series):
        groups.setdefault(_group(name, len(runs)), []).append(name)
    marks = tuple(mark for number, run in enumerate(runs) for mark in _marks(number, run, len(runs)))
    ends = [run.curves.end for run in runs if math.isfinite(run.curves.end)]
    starts = [first[0] for run in runs for one in run.curves.series.values() if (first := one.first)]
    across = Scale(*_wide(min([*starts, 0.0]), max(ends, default=1.0)))
    charts = [_chart(key, names, runs, marks, across) for (_, key), names in sorted(groups.items())]
    drawn = [chart for chart in charts if chart is not None]
    return drawn[:_MAX_CHARTS], [chart.title for chart in drawn[_MAX_CHARTS:]]


def _group(name: str, runs: int) -> tuple[int, str]:
    """The order and the key of the chart that shows a metric: one metric each, besides the losses of a single run."""
    if name == "loss" or (runs == 1 and name == "eval_loss"):
        kind, key = "loss", "loss"
    elif name.endswith("_per_second") or name == "mfu":
        kind, key = "speed", name
    elif "memory" in name or "mem_" in name:
        kind, key = "memory", name
    elif name.startswith("eval_"):
        kind, key = ("eval_loss" if name.endswith("loss") else "evaluation"), name
    else:
        kind, key = (name if name in _ORDER else "other"), name
    return _ORDER.index(kind), key


def title_of(name: str) -> str:
    if name in _TITLES:
        return _TITLES[name]
    text = name.removeprefix("eval_").replace("_per_second", " per second").replace("_", " ")
    return f"Evaluation: {text}" if name.startswith("eval_") else text[:1].upper() + text[1:]


def _marks(number: int, run: Run, runs: int) -> list[Mark]:
    """Where each attempt after the first began: at the last step of the one before."""
    if run.summary is None or run.curves.axis != "step":
        return []
    attempts = run.summary.attempts
    found = []
    for before, one in pairwise(attempts):
        if before.steps is not None:
            label = f"attempt {one.number}" + (f" of {run.name}" if runs > 1 else "")
            found.append(Mark(float(before.steps), label, number))
    return found


def _chart(key: str, names: list[str], runs: Sequence[Run], marks: tuple[Mark, ...], across: Scale) -> Chart | None:
    lines = []
    for number, run in enumerate(runs):
        for at, name in enumerate(sorted(names, key=("loss", "eval_loss").index) if len(names) > 1 else names):
            if (series := run.curves.series.get(name)) is not None and series.count:
                label = run.name if len(runs) > 1 else ("training" if name == "loss" and len(names) > 1 else name)
                label = "evaluation" if len(runs) == 1 and name == "eval_loss" and len(names) > 1 else label
                points = series.points()
                lines.append(Line(label, number, number + at, series, points, len(points) <= 40))
    if not lines:
        return None
    known = [y for line in lines for y in (line.series.lowest, line.series.highest) if y is not None]
    low, high = min((y for _, y in known), default=0.0), max((y for _, y in known), default=1.0)
    if _group(key, len(runs))[0] in _FROM_ZERO:
        low = min(low, 0.0)
    log = key not in _LINEAR and low > 0 and high / low >= _LOG_RATIO
    y_ticks = tuple(_log_ticks(low, high) if log else _ticks(*_wide(low, high)))
    y = Scale(min(low, *y_ticks), max(high, *y_ticks), log)
    x_ticks = tuple(tick for tick in _ticks(across.low, across.high, 6) if across.low <= tick <= across.high)
    title = title_of(key) if key != "loss" or len(runs) == 1 else "Training loss"
    return Chart(key, title, tuple(lines), marks, across, y, x_ticks, y_ticks)


def _wide(low: float, high: float) -> tuple[float, float]:
    """Never an empty range."""
    if high > low:
        return low, high
    spare = abs(low) * 0.1 or 0.5
    return low - spare, high + spare


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that enclose the range."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) if abs(step) >= 1e-9 else number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose the range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, round((last - first) / 5))
    return [10.0**power for power in range(first, last + every, every)]


def number(value: float) -> str:
    """A value for people: ``4.27``, ``18.4k``, ``3e-05``; what is not finite is named."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("infinity" if value > 0 else "-infinity")
    size = abs(value)
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if size >= factor:
            divided = value / (factor if unit != "k" else 1e3)
            return f"{divided:.4g}{unit}"
    return f"{value:.4g}"


def segments(line: Line) -> Iterable[list[Point]]:
    """The parts of a curve between values that are not finite."""
    part: list[Point] = []
    lost, at = line.series.lost, 0
    for point in line.points:
        while at < len(lost) and lost[at] < point[0]:
            if part:
                yield part
                part = []
            at += 1
        part.append(point)
    if part:
        yield part


def spoken(chart: Chart, axis: str) -> str:
    """What the chart shows, in sentences."""
    said = []
    for line in chart.lines:
        series = line.series
        first, last, low, high = series.first, series.last, series.lowest, series.highest
        who = f"{line.label}: " if len(chart.lines) > 1 else ""
        lost = f" {len(series.lost)} of {series.count} values are not finite." if series.lost else ""
        if first is None or last is None or low is None or high is None:
            said.append(f"{who}no finite value.{lost}")
            continue
        if first == last:
            said.append(f"{who}{number(last[1])} at {axis} {number(last[0])}.{lost}")
            continue
        if len(chart.lines) > 2:
            said.append(f"{who}{number(last[1])}, lowest {number(low[1])}, highest {number(high[1])}.{lost}")
            continue
        said.append(
            f"{who}from {number(first[1])} to {number(last[1])} at {axis} {number(last[0])}; "
            f"lowest {number(low[1])} at {number(low[0])}, highest {number(high[1])} at {number(high[0])}.{lost}"
        )
    return " ".join(said)
