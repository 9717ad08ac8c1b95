"""Find the best evaluation so far, by ``metric_for_best_model``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trainwright import rules
from trainwright.contract import UserError


class MetricError(UserError, KeyError):
    """An evaluation did not return the metric of ``metric_for_best_model``."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


def value_of(args: Any, metrics: dict[str, float]) -> float:
    """Return the watched metric. Raises :class:`MetricError` if the evaluation did not return it."""
    name = args.metric_for_best_model
    name = name if name.startswith("eval_") else f"eval_{name}"
    if name not in metrics:
        raise no_such_metric(name, [metric.removeprefix("eval_") for metric in metrics if metric != "epoch"])
    return metrics[name]


def no_such_metric(name: str, known: Collection[str]) -> MetricError:
    """Make the error for a metric that is not among the ``known`` ones, named without ``eval_``."""
    chosen = [metric for metric in known if not metric.endswith(rules.MEASURED)]
    return MetricError(f"metric_for_best_model: {rules.no_such_metric(name.removeprefix('eval_'), chosen)}")


def record(args: Any, state: Any, metrics: dict[str, float]) -> bool:
    """Record the evaluation in ``state`` if it is the best so far; return whether it is."""
    if args.metric_for_best_model is None:
        return False
    value, best = value_of(args, metrics), state.best_metric
    if best is not None and not (value > best if args.greater_is_better else value < best):
        return False
    if value != value:  # NaN is never the best
        return False
    state.best_metric = value
    if args.save_strategy != "no":
        state.best_global_step = state.global_step
    return True
