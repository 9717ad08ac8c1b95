"""Summarizes a run: spec, attempts, metrics, best and latest checkpoint.

:func:`summarize` returns plain values, from which all formats are rendered, so that they agree.

The losses come from the logs of rank 0, as long as its pods exist: the status has only the latest values.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from trainwright_operator.core import display
from trainwright_operator.core.history import Outcome, Record
from trainwright_operator.core.policy import describe
from trainwright_operator.core.states import condition, status_of
from trainwright_operator.core.times import read_time
from trainwright_operator.remote.cluster import Cluster, Object, RemoteError
from trainwright_operator.remote.jobs import find_pods
from trainwright_operator.remote.loglines import lines, sources


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

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def summarize(job: Object, now: datetime, curves: Mapping[str, Curve] | None = None) -> Summary:
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
        curves=dict(curves or {}),
    )


def _message(job: Object) -> str:
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


Curve = list[tuple[float, float]]
"""Pairs of epoch and value, by increasing epoch."""

NAMES = ("loss", "eval_loss")
TOTALS = ("train_loss", "train_runtime")
BARS = "▁▂▃▄▅▆▇█"
LOST = "×"


def read_curves(cluster: Cluster, job: Object) -> dict[str, Curve]:
    """Empty if the pods do not exist or their logs cannot be read."""
    try:
        leaders = [one for one in sources(find_pods(cluster, job)) if one.has(0) and one.started]
        texts = [line.text for one in leaders for line in lines(cluster, one, tail=None) if line.rank == 0]
    except RemoteError:
        return {}
    return curves(texts)


def curves(texts: Iterable[str]) -> dict[str, Curve]:
    """The losses in the lines of all attempts; epochs that are trained again replace earlier values."""
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
    """The metrics in a line logged by a trainer; empty for any other line."""
    if not text.startswith("{'"):
        return {}
    try:
        read = ast.literal_eval(text)
        return {str(name): float(value) for name, value in read.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return {}


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """One bar per value; too many values are sampled evenly. A value that is not finite is a cross."""
    shown = (
        [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)] if len(values) > width else values
    )
    known = [value for value in shown if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if math.isfinite(value) else LOST for value in shown)
