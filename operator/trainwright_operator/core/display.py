"""The strings of ``kubectl get trainingjobs`` and of the local table: STEP, LOSS, EVAL, TOK/S, ENDS, RESTARTS."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from trainwright_operator.core.times import read_time

_LOSS = re.compile(r"(\w+_)?loss")
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.")


def plain(text: str) -> str:
    """A pod's words without what a terminal would take for orders: colours, a moved cursor, a bell."""
    return "".join(char for char in _ESCAPES.sub("", text) if char.isprintable())


def training(status: Mapping[str, Any]) -> dict[str, str]:
    """What was trained; a key is absent while nothing is known of it."""
    progress = status.get("progress") or {}
    metrics = {one["name"]: one["value"] for one in status.get("metrics") or ()}
    shown = {
        "step": _step(progress),
        "loss": _short(metrics.get("loss", metrics.get("train_loss"))),
        "eval": _short(_evaluation(metrics)),
        "tokensPerSecond": rate(progress.get("tokensPerSecond")),
    }
    return {key: value for key, value in shown.items() if value}


def slow(status: Mapping[str, Any]) -> str:
    """``gpt-0-2-1 2.4x``: the pod, or the rank, that the others wait for."""
    one = status.get("slowest") or {}
    return f"{one.get('pod') or 'rank {}'.format(one['rank'])} {one['factor']:.1f}x"[-64:] if one else ""


_WRONG = {
    "LossNotFinite": "loss was not finite",
    "GradientNormNotFinite": "gradient norm was not finite",
    "LossTooLarge": "loss was too large",
    "GradientNormTooLarge": "gradient norm was too large",
}


def anomalies(status: Mapping[str, Any]) -> str:
    """``2 steps were left out, the last one step 45: the loss was not finite (rank 1)``; empty if there were none."""
    one = status.get("anomalies") or {}
    if not one.get("count"):
        return ""
    count, back = one["count"], one.get("rollbacks", 0)
    counted = f"{count} step{'s were' if count > 1 else ' was'} left out"
    if back:
        counted += f", {back} of them with a rollback" if back < count else ", with a rollback"
    return f"{counted}; the last was step {one['step']}: the {_WRONG[one['kind']]} (rank {one['rank']})"


def not_finite(status: Mapping[str, Any]) -> str:
    """What is said of a run whose newest losses are no numbers: it goes on, and hardly ever recovers."""
    if status.get("anomalies"):  # those steps were left out
        return ""
    lost = [one for one in status.get("metrics") or () if _LOSS.fullmatch(one["name"]) and not _is_finite(one["value"])]
    if not lost:
        return ""
    losses = ", ".join(f"{one['name']} is {one['value']}" for one in lost[:3])
    return f"{losses}: resume from a checkpoint before it, with a lower learningRate or maxGradNorm, or other data"


def _is_finite(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:  # words of a user's own
        return True


def ending(progress: Mapping[str, Any], now: datetime) -> dict[str, str]:
    """``10:42 (in ~21s)``, in the time zone of ``now``; a date goes before it when the end is not today."""
    end = read_time(progress.get("endTime"))
    if end is None:
        return {}
    left = max(0, round((end - now).total_seconds()))
    return {"ends": f"{clock(end.astimezone(now.tzinfo), now)} (in ~{duration(left)})"}


def clock(time: datetime, reference: datetime) -> str:
    return time.strftime("%H:%M" if time.date() == reference.date() else "%b %d %H:%M")


def duration(seconds: int) -> str:
    """Two units at most: ``21s``, ``5m10s``, ``3h05m``, ``2d04h``."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if minutes < 1:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m{seconds % 60:02d}s"
    return f"{hours}h{minutes % 60:02d}m" if days < 1 else f"{days}d{hours % 24:02d}h"


def rate(value: float | None) -> str:
    """``930``, ``18.4k``, ``1.25M``: three digits."""
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def restarts(counted: int, disruptions: int) -> str:
    """Those that count, and in brackets the disruptions that do not: ``1``, ``0 (2)``."""
    return f"{counted} ({disruptions})" if disruptions else f"{counted}"


def _step(progress: Mapping[str, Any]) -> str:
    if "step" not in progress and "activity" in progress:
        return str(progress["activity"])
    if "step" not in progress:
        return f"{progress['percent']}%" if "percent" in progress else ""
    step = str(progress["step"])
    return f"{step}/{progress['maxSteps']}" if progress.get("maxSteps") else step


def _evaluation(metrics: Mapping[str, str]) -> str | None:
    """The loss of the evaluation, else of the first of several evaluation sets."""
    losses = sorted(name for name in metrics if name.startswith("eval_") and name.endswith("_loss"))
    return metrics.get("eval_loss", metrics[losses[0]] if losses else None)


def _short(value: str | None) -> str:
    try:
        return f"{float(value):.4g}" if value is not None else ""
    except ValueError:
        return ""
