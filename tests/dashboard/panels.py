"""The panels of the dashboard: what Prometheus answers them, beside what the status of the jobs says."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.prometheus import Prometheus
from trainwright_operator.cluster.metrics import WAITS
from trainwright_operator.core.avoidance import blamed
from trainwright_operator.core.history import Outcome, Record

Object = dict[str, Any]
Values = dict[str, float]
MINUTES_15 = 900
WRITTEN_SECONDS = 3
"""So long after a push, at the latest, it is in the status."""
TOLERANCE = 0.05
"""A leader that is killed takes with it what it counted after its last scrape."""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    decimals: int | None
    stacked: bool
    targets: tuple[tuple[str, str], ...]
    """Expressions, each with the format of its legend."""
    x: int
    y: int


@dataclass(frozen=True)
class Row:
    panel: str
    series: str
    found: float | None
    wanted: float | str
    right: bool


def panels_of(dashboard: str) -> list[Panel]:
    return [_panel(one) for one in json.loads(dashboard)["panels"]]


def _panel(one: Mapping[str, Any]) -> Panel:
    defaults, at = one["fieldConfig"]["defaults"], one["gridPos"]
    targets = tuple((target["expr"], target["legendFormat"]) for target in one["targets"])
    stacked = "stacking" in defaults.get("custom", {})
    return Panel(one["title"], defaults["unit"], defaults.get("decimals"), stacked, targets, at["x"], at["y"])


def legend(form: str, labels: Mapping[str, str]) -> str:
    """As Grafana fills it in: a label that the series lacks is empty."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def values_of(panel: Panel, server: Prometheus, at: float) -> Values:
    """The newest value of each series, by its legend."""
    found: Values = {}
    for expression, form in panel.targets:
        for labels, value in server.query(expression, at).items():
            name = legend(form, dict(labels))
            assert name not in found, f"{panel.title}: two series are called {name!r}"
            found[name] = value
    return found


def compared(panel: Panel, found: Values, wanted: Mapping[str, float | str], scale: float) -> list[Row]:
    """A row for each series; one that is missing or too many is wrong."""
    if not wanted:
        return [Row(panel.title, name, value, "any", math.isfinite(value)) for name, value in found.items()] or [
            Row(panel.title, "", None, "any", False)
        ]
    rows = []
    for name in sorted({*found, *wanted}):
        value, expected = found.get(name), wanted.get(name, "none")
        value = value if value is None else value * scale
        rows.append(Row(panel.title, name, value, expected, _fits(value, expected)))
    return rows


def _fits(value: float | None, expected: float | str) -> bool:
    if isinstance(expected, str):
        low, _, high = expected.partition(" to ")
        return value is not None and bool(high) and float(low) <= value <= float(high)
    return value is not None and math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=0.01)


def expected(jobs: Sequence[Object], accepted: int, first_steps: Iterable[float]) -> dict[str, tuple[Mapping, float]]:
    """By title: the value of each series, and by what the panel's is multiplied first. Empty: any that is a number."""
    statuses = {f"{one['metadata']['namespace']}/{one['metadata']['name']}": one["status"] for one in jobs}
    at_work = {
        name: one for name, one in statuses.items() if "completionTime" not in one and "percent" in one["goodput"]
    }
    held = sum(one.get("acceleratorSeconds", 0) for one in statuses.values())
    lost = sum(one["goodput"].get("lostAcceleratorSeconds", 0) for one in statuses.values())
    return {
        "Jobs by state": (Counter(one["state"] for one in statuses.values()), 1),
        "Restarts in the last hour, by reason": (Counter(_restarts(statuses.values())), 1),
        "Where the time of jobs went, over 15 minutes": (_shares(statuses.values()), 1),
        "Goodput of jobs at work, lowest 20": (
            {name: one["goodput"]["percent"] / 100 for name, one in at_work.items()}, 1
        ),
        "Accelerators held, and spent in steps, mean of 15 minutes": (
            {"held": held, "in steps": held - lost}, MINUTES_15
        ),
        "Cost of accelerators in the last hour": (_costs(statuses.values()), 1),
        "Nodes on which attempts failed first, the 10 with most": (Counter(_nodes(statuses.values())), 1),
        "Slow ranks: own time by the median of the others": (
            {name: one["slowest"]["factor"] for name, one in statuses.items() if _is_slow(one)}, 1
        ),
        "From apply to the first step, median": ({"median": _bucket(sorted(first_steps))}, 1),
        "Progress pushes": ({"accepted": float(accepted)}, 300),
        "Reconcile time, 99th percentile": ({"p99": "0 to 5"}, 1),
        "Requests to the API server": ({}, 1),
    }  # fmt: skip


def _is_slow(status: Object) -> bool:
    return status["state"] == "Running" and "slowest" in status


def _restarts(statuses: Iterable[Object]) -> Iterable[str]:
    for status in statuses:
        for number, entry in enumerate(status.get("attempts") or ()):
            yield from (one["reason"] for one in entry.get("rounds") or ())
            is_last = number + 1 == len(status["attempts"])
            if not is_last and entry.get("outcome") in (Outcome.FAILED, Outcome.DISRUPTED):
                yield entry["reason"]


def _shares(statuses: Iterable[Object]) -> Values:
    seconds: Counter[str] = Counter()
    for status in statuses:
        seconds.update(status["goodput"]["seconds"])
    del seconds["suspended"]
    return {cause: one / seconds.total() for cause, one in seconds.items()}


def _costs(statuses: Iterable[Object]) -> Values:
    costs: Counter[str] = Counter()
    for one in (one for status in statuses for one in status.get("cost") or ()):
        costs[one["currency"]] += one["amount"]
        costs[f"{one['currency']} not for steps"] += one["lost"]
    return dict(costs)


def _nodes(statuses: Iterable[Object]) -> Iterable[str]:
    records = (Record.from_dict(entry) for status in statuses for entry in status.get("attempts") or ())
    return (node for record in records if (node := blamed(record)))


def _bucket(seconds: Sequence[float]) -> str:
    """The bounds between which the histogram places the median; the operator sees a step when it writes it."""
    low, high = seconds[(len(seconds) - 1) // 2], seconds[len(seconds) // 2]
    below = max((bound for bound in (0, *WAITS) if bound < low), default=0)
    return f"{below} to {min(bound for bound in WAITS if bound >= high + WRITTEN_SECONDS)}"
