"""Summarizes a run: spec, attempts, metrics, best and latest checkpoint.

:func:`summarize` returns plain values, from which all formats are rendered, so that they agree.

The losses come from the logs of rank 0, as long as its pods exist: the status has only the latest values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from trainwright_operator.core import display, goodput
from trainwright_operator.core.history import Outcome, Record
from trainwright_operator.core.policy import describe
from trainwright_operator.core.states import condition, status_of
from trainwright_operator.core.times import read_time

Curve = list[tuple[float, float]]
"""Pairs of epoch and value, by increasing epoch."""


@dataclass(frozen=True)
class AttemptSummary:
    number: int
    start: str
    seconds: int
    steps: int | None
    outcome: str
    why: str


@dataclass(frozen=True)
class Summary:
    """``spec`` and ``arguments`` describe the request, ``metrics`` has the latest values; times are RFC 3339.

    ``curves`` are the losses by epoch, if the logs of rank 0 still exist.
    """

    name: str
    namespace: str
    state: str
    message: str
    spec: dict[str, str]
    arguments: dict[str, Any]
    created: str | None
    started: str | None
    completed: str | None
    seconds: int | None
    progress: dict[str, Any]
    metrics: dict[str, str]
    best: dict[str, Any]
    checkpoint: dict[str, Any]
    restarts: dict[str, int]
    attempts: list[AttemptSummary]
    curves: dict[str, Curve] = field(default_factory=dict)
    goodput: dict[str, Any] = field(default_factory=dict)
    """``goodput``, ``acceleratorSeconds`` and ``cost`` of the status."""
    anomalies: dict[str, Any] = field(default_factory=dict)
    """Of the status."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def with_curves(summary: Summary, curves: Mapping[str, Curve]) -> Summary:
    return replace(summary, curves=dict(curves))


def summarize(job: Mapping[str, Any], now: datetime) -> Summary:
    meta, spec, status = job["metadata"], job["spec"], status_of(job)
    started, completed = read_time(status.get("startTime")), read_time(status.get("completionTime"))
    return Summary(
        name=meta["name"],
        namespace=meta.get("namespace", "default"),
        state=status["state"],
        message=_message(job),
        spec=dict(_spec(spec)),
        arguments=dict(spec.get("trainingArguments") or {}),
        created=meta.get("creationTimestamp"),
        started=status.get("startTime"),
        completed=status.get("completionTime"),
        seconds=round(((completed or now) - started).total_seconds()) if started else None,
        progress=dict(status.get("progress") or {}),
        metrics={one["name"]: one["value"] for one in status.get("metrics") or ()},
        best=dict(status.get("best") or {}),
        checkpoint=dict(status.get("checkpoint") or {}),
        restarts=dict(status.get("restarts") or {}),
        attempts=[_attempt(Record.from_dict(entry), now) for entry in status.get("attempts") or ()],
        goodput={name: status[name] for name in ("goodput", "acceleratorSeconds", "cost") if name in status},
        anomalies=dict(status.get("anomalies") or {}),
    )


def _message(job: Mapping[str, Any]) -> str:
    """The message of the condition that explains the state."""
    kinds = ("Stalled", "Queued", status_of(job)["state"], "Reconciling")
    return next((str(one["message"]) for kind in kinds if (one := condition(job, kind)) and one["message"]), "")


def _attempt(record: Record, now: datetime) -> AttemptSummary:
    return AttemptSummary(
        number=record.number,
        start=record.start.isoformat().replace("+00:00", "Z"),
        seconds=round(((record.end or now) - record.start).total_seconds()),
        steps=record.step,
        outcome=record.outcome.value if record.outcome else "running",
        why=describe(record).partition(": ")[2] if record.cause and record.outcome is not Outcome.SUCCEEDED else "",
    )


def _spec(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Describes each part of a spec."""
    if script := spec.get("script"):
        yield "script", _script(script)
    if model := spec.get("model"):
        origin = "from its configuration" if "fromConfig" in model else f"at {model.get('revision', 'main')}"
        yield "model", f"{model['source']} {'' if model['source'].startswith('/') else origin}".strip()
    if dataset := spec.get("dataset"):
        named = [dataset["source"], *(dataset[key] for key in ("name", "split") if key in dataset)]
        yield "dataset", " ".join(named)
    if task := spec.get("task"):
        yield "task", task
    wanted = spec.get("accelerator") or {}
    nodes, per_node = wanted.get("nodes", 1), wanted.get("perNode", 1)
    pool = f"pool {wanted['pool']}" if "pool" in wanted else "the default pool"
    yield "accelerator", f"{pool}, {_count(nodes, 'node')} of {_count(per_node, 'rank')}"
    yield "output", _output(spec.get("output") or {})


def _script(script: Mapping[str, Any]) -> str:
    source = script.get("configMap") or {}
    where = script.get("path") or (f"{source.get('key')} of ConfigMap {source.get('name')}" if source else "inline")
    overlay = ["(overlay)"] if script.get("overlay") else []
    return " ".join([where, *script.get("args", []), *overlay])


def _output(output: Mapping[str, Any]) -> str:
    if claim := output.get("persistentVolumeClaim"):
        where = f"claim {claim['claimName']}"
    elif path := output.get("hostPath"):
        where = f"{path['path']} on the node"
    else:
        where = "a folder that is deleted with the pod"
    return f"{where}, {output['subPath']}" if output.get("subPath") else where


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: int | None) -> str:
    return display.duration(seconds) if seconds is not None else ""


Rows = list[tuple[str, str]]
BARS = "▁▂▃▄▅▆▇█"
LOST = "×"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """One bar per value; too many values are sampled evenly. A value that is not finite is a cross."""
    shown = (
        [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)] if len(values) > width else values
    )
    known = [value for value in shown if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if math.isfinite(value) else LOST for value in shown)


TIMES = ("TIME WENT TO", "SECONDS", "SHARE", "")
ATTEMPTS = ("ATTEMPT", "STARTED", "TOOK", "STEP", "ENDED", "WHY")


def facts(summary: Summary) -> Rows:
    """Pairs of name and value; unknown values are left out."""
    restarts = summary.restarts
    rows = [
        ("state", summary.state + (f": {summary.message}" if summary.message else "")),
        *summary.spec.items(),
        ("arguments", ", ".join(f"{name} {_plain(value)}" for name, value in summary.arguments.items())),
        ("created", summary.created or ""),
        ("started", summary.started or ""),
        ("finished", summary.completed or ""),
        ("time", duration(summary.seconds)),
        ("progress", _progress(summary.progress)),
        *((name, _curve([value for _, value in curve])) for name, curve in summary.curves.items()),
        ("restarts", f"{restarts['total']}, {restarts['counted']} counted" if restarts.get("total") else ""),
        ("anomalies", display.anomalies({"anomalies": summary.anomalies})),
        *goodput.facts(summary.goodput),
        ("best", _best(summary.best)),
        ("checkpoint", _checkpoint(summary.checkpoint)),
    ]
    return [(name, value) for name, value in rows if value]


def attempts(summary: Summary) -> list[tuple[str, ...]]:
    return [
        (
            str(one.number),
            one.start,
            duration(one.seconds),
            "" if one.steps is None else str(one.steps),
            one.outcome,
            one.why,
        )
        for one in summary.attempts
    ]


def times(summary: Summary) -> list[tuple[str, ...]]:
    """A row for each thing that the job's life went to."""
    return list(goodput.rows(summary.goodput))


def metrics(summary: Summary) -> list[tuple[str, str]]:
    left_out = summary.progress.get("metricsLeftOut")
    return [
        *summary.metrics.items(),
        *([("...", f"and {left_out} more, which are not in the status")] if left_out else []),
    ]


def _plain(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _curve(values: Sequence[float]) -> str:
    lost = sum(not math.isfinite(value) for value in values)
    shown = f"{values[0]:.4g} {sparkline(values)} {values[-1]:.4g}" if len(values) > 1 else f"{values[0]:.4g}"
    return f"{shown}  ({lost} of {len(values)} are not finite)" if lost else shown


def _progress(progress: dict[str, Any]) -> str:
    if "step" not in progress:
        return f"{progress['percent']}%" if "percent" in progress else ""
    of = f" of {progress['maxSteps']}" if "maxSteps" in progress else ""
    epoch = f", epoch {progress['epoch']:g}" if "epoch" in progress else ""
    rate = f", {progress['tokensPerSecond']:.3g} tokens/s" if "tokensPerSecond" in progress else ""
    return f"step {progress['step']}{of}{epoch}{rate}"


def _best(best: dict[str, Any]) -> str:
    if "metric" not in best:
        return ""
    step = f" at step {best['step']}" if "step" in best else ""
    place = f", {best['checkpoint']}" if "checkpoint" in best else ""
    return f"{best['metric']} {best.get('value', '')}{step}{place}"


def _checkpoint(checkpoint: dict[str, Any]) -> str:
    if "path" not in checkpoint:
        return ""
    return str(checkpoint["path"]) + (f", {checkpoint['time']}" if "time" in checkpoint else "")
