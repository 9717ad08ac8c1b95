"""How the losses went, as rank 0 printed them: read from the logs of its pods, for as long as there are pods.

The status holds the newest values alone, so that it stays small; the log has one line for each.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence

from trainwright_operator.remote.cluster import Cluster, Object
from trainwright_operator.remote.errors import RemoteError
from trainwright_operator.remote.jobs import find_pods
from trainwright_operator.remote.loglines import sources
from trainwright_operator.remote.podlogs import lines

Curve = list[tuple[float, float]]
"""Epoch and value, by rising epoch."""

NAMES = ("loss", "eval_loss")
TOTALS = ("train_loss", "train_runtime")
BARS = "▁▂▃▄▅▆▇█"
LOST = "×"


def read_curves(cluster: Cluster, job: Object) -> dict[str, Curve]:
    """Empty where the pods are gone, or their logs may not be read."""
    try:
        leaders = [one for one in sources(find_pods(cluster, job)) if one.has(0) and one.started]
        texts = [line.text for one in leaders for line in lines(cluster, one, tail=None) if line.rank == 0]
    except RemoteError:
        return {}
    return curves(texts)


def curves(texts: Iterable[str]) -> dict[str, Curve]:
    """The lines of all attempts in order: what an attempt trains again takes the place of what was lost."""
    found: dict[str, Curve] = {name: [] for name in NAMES}
    for logged in map(_logged, texts):
        epoch = logged.get("epoch")
        if epoch is None or any(name in logged for name in TOTALS):
            continue
        for name in NAMES:
            if name in logged:
                kept = [point for point in found[name] if point[0] < epoch]
                found[name] = [*kept, (epoch, logged[name])]
    return {name: curve for name, curve in found.items() if curve}


def _logged(text: str) -> dict[str, float]:
    """The numbers of a line that a trainer logged; empty for any other line."""
    if not text.startswith("{'"):
        return {}
    try:
        read = ast.literal_eval(text)
        return {str(name): float(value) for name, value in read.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return {}


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Bars from the lowest to the highest value; of more values than fit, evenly chosen ones. No number is a cross."""
    shown = (
        [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)] if len(values) > width else values
    )
    known = [value for value in shown if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if math.isfinite(value) else LOST for value in shown)
