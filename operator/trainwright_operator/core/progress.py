"""What the trainers tell, merged into the status: pushes while they work, and the final word of a pod.

Nothing here is believed further than it can be shown: every value is checked and bounded before it enters the status (a
push comes from a user's pod), and no decision is ever made from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from trainwright.contract import (
    ANOMALIES,
    MAX_METRICS,
    MAX_ROUND_MESSAGE,
    MAX_ROUNDS,
    MAX_RUNS,
    ON_ANOMALY,
    ExitCode,
    Termination,
)
from trainwright_operator.api.job import MAX_RESTARTS
from trainwright_operator.api.names import Reason
from trainwright_operator.api.status import MAX_ACTIVITY, MAX_NAME, MAX_PATH, MAX_URL, MAX_VALUE, MAX_WHY, MEMORY_PARTS
from trainwright_operator.core import display, goodput
from trainwright_operator.core.history import Record, Round
from trainwright_operator.core.observe import Attempt, Pod
from trainwright_operator.core.times import read_time, write_time

Status = dict[str, Any]
_INT64 = 2**53 - 1
_LAST_TIME = 253402300799.0
_MOST_RANKS = 2**20
_FAR = 3650 * 86_400
_GIB = 2**30
_PEAK = "peak_memory_gib"
"""The metric of the Trainer."""
_COUNTERS = {"current_step": "step", "total_steps": "maxSteps", "current_epoch": "epoch"}
"""How the KubeflowCallback of transformers tells the step: among the metrics."""


@dataclass(frozen=True)
class Report:
    """One report, checked: only what was told and makes sense."""

    progress: Mapping[str, Any] = field(default_factory=dict)
    remaining_seconds: int | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None
    checkpoint: Mapping[str, Any] | None = None
    runs: Mapping[str, str] = field(default_factory=dict)
    """Tracker -> URL."""
    model: str | None = None
    clock: Mapping[str, Any] | None = None
    round: int | None = None
    slowest: Mapping[str, Any] | None = None
    """Empty where no rank is slow."""
    anomalies: Mapping[str, Any] | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    """GiB that a rank was expected to need, and of them those of each part."""


def merge_progress(status: Mapping[str, Any], push: Mapping[str, Any], now: datetime) -> Status:
    """``status`` with a push merged in; as it was when the push is not of the attempt at work, or an older one.

    ``push`` is the body on the wire (:meth:`trainwright.contract.Progress.to_wire`, or what the ``KubeflowCallback`` of
    transformers posts), and beside it ``attempt``, the number that the pusher's pod was verified to have.
    """
    current = _open_attempt(status)
    own = _mapping(push.get("trainwright"))
    attempt = push.get("attempt", own.get("attempt", current))
    if rounds := _mapping(own.get("rounds")):
        status = merge_rounds(status, rounds.get("number"), rounds.get("ended")) if attempt == current else status
        if own.keys() <= {"rounds", "gang"} and "gang" not in own:
            return dict(status)
    if gang := _gang(_mapping(own.get("gang"))):
        known = current is not None and attempt == current
        return {**status, "gang": {"attempt": current, **gang}} if known else dict(status)
    report = _of_wire(_mapping(push.get("trainerStatus")), own)
    known = status.get("progress") or {}
    round = report.round or _round(status)
    place = (round, report.progress.get("step", _INT64))
    stale = known.get("attempt") == current and place < (known.get("round", 1), known.get("step", 0))
    if current is None or attempt != current or stale:
        return dict(status)
    before = {key: value for key, value in _of_attempt(status, current).items() if key != "activity"}
    progress = {**before, **report.progress, "lastUpdateTime": write_time(now)}
    progress |= {"round": round} if round > 1 else {}
    if report.remaining_seconds is not None:
        progress["endTime"] = write_time(now + timedelta(seconds=report.remaining_seconds))
    if report.clock:
        status = goodput.merge_clock(status, current, report.clock, now)
    elif report.progress.get("step"):
        status = goodput.merge_unclocked(status, current, now)
    return _merged(status, report, progress, now)


def merge_final_word(status: Mapping[str, Any], attempt: Attempt) -> Status:
    """``status`` with what the termination messages tell, once there are any: right even if every push was lost.

    Rank 0's pod tells how far it came, every pod how often the ranks were restarted in place.
    """
    status = _with_rounds(status, attempt)
    pod = attempt.pods[0] if attempt.pods else None
    if pod is None or pod.index or pod.slice or pod.end is None or pod.end.word is None:
        return dict(status)
    report = _of_word(pod.end.word, pod.end.time)
    if report.clock:
        status = goodput.merge_clock(status, attempt.number, report.clock, None)
    return _merged(status, report, {**_of_attempt(status, attempt.number), **report.progress}, None)


def keep_rounds(push: Mapping[str, Any], before: Mapping[str, Any]) -> Status:
    """``push`` with the restarts in place of the one that it replaces: rank 0 and its launcher push apart."""
    rounds = _mapping(before.get("trainwright")).get("rounds")
    own = _mapping(push.get("trainwright"))
    if not rounds or "rounds" in own or before.get("attempt") != push.get("attempt"):
        return dict(push)
    return {**push, "trainwright": {**own, "rounds": rounds}}


def merge_rounds(status: Mapping[str, Any], number: Any, ended: Any) -> Status:
    """``status`` with the restarts in place of the attempt at work: each counts, and once.

    ``number`` is the round that works now, ``ended`` is :meth:`trainwright.contract.RoundEnd.to_wire` of the newest
    rounds before it; both come from a pod.
    """
    entries = list(status.get("attempts") or ())
    made = (_integer(number, MAX_RESTARTS + 1) or 1) - 1
    record = Record.from_dict(entries[-1]) if entries else None
    if record is None or made <= record.restarts:
        return dict(status)
    told = {one.number: one for item in (ended if isinstance(ended, list) else ()) if (one := _ended_round(item))}
    rounds = {one.number: one for one in record.rounds} | {
        key: one for key, one in told.items() if record.restarts < key <= made
    }
    newest = tuple(rounds[key] for key in sorted(rounds))[-MAX_ROUNDS:]
    entries[-1] = replace(record, restarts=made, rounds=newest).to_dict()
    counts = status.get("restarts") or {}
    counted, disruptions = counts.get("counted", 0) + made - record.restarts, counts.get("disruptions", 0)
    shown = {**(status.get("display") or {}), "restarts": display.restarts(counted, disruptions)}
    total = {"total": counted + disruptions, "counted": counted, "disruptions": disruptions}
    return {**status, "attempts": entries, "restarts": total, "display": shown}


def _ended_round(value: Any) -> Round | None:
    one = _mapping(value)
    number, time = _integer(one.get("round"), MAX_RESTARTS), _number(one.get("time"))
    if not number:
        return None
    return Round(
        number=number,
        end=datetime.fromtimestamp(time, UTC).replace(microsecond=0) if time and time < _LAST_TIME else None,
        exit_code=_integer(one.get("code"), 255),
        message=_word(str(one.get("error") or ""), MAX_ROUND_MESSAGE),
        rank=_integer(one.get("rank"), _MOST_RANKS),
        node_rank=_integer(one.get("node"), _MOST_RANKS),
        step=_integer(one.get("step")),
    )


def _with_rounds(status: Mapping[str, Any], attempt: Attempt) -> Status:
    """With the rounds that pods tell when they end, and for each round the pod that its first failure came from."""
    if _open_attempt(status) == attempt.number:
        words = (pod.end.word for pod in attempt.pods if pod.end and pod.end.word)
        for word in islice((word for word in words if word.round), 1):
            status = merge_rounds(status, word.round, word.rounds)
    entries = list(status.get("attempts") or ())
    record = Record.from_dict(entries[-1]) if entries else None
    if record is None or record.number != attempt.number or all(one.reason for one in record.rounds):
        return dict(status)
    entries[-1] = replace(record, rounds=tuple(_explained(one, attempt) for one in record.rounds)).to_dict()
    return {**status, "attempts": entries}


def _explained(one: Round, attempt: Attempt) -> Round:
    """The round with its reason, and with the pod and its node, found by the rank of the node."""
    if one.reason:
        return one
    reason = Reason.HANG if one.exit_code == ExitCode.HANG else Reason.ERROR
    pod = next((pod for pod in attempt.pods if _node_rank(pod, attempt) == one.node_rank), None)
    return replace(one, reason=reason, pod=pod.name if pod else None, node=pod.node if pod else None)


def _node_rank(pod: Pod, attempt: Attempt) -> int:
    """The hosts of a slice are counted from its first one, those of the gang over all slices."""
    hosts = attempt.jobs[0].completions if attempt.jobs else 0
    return pod.slice * hosts + pod.index


def _round(status: Mapping[str, Any]) -> int:
    """The round of the newest attempt that works now."""
    attempts = status.get("attempts")
    return int(attempts[-1].get("restartsInPlace", 0)) + 1 if attempts else 1


def _gang(gang: Mapping[str, Any]) -> Status:
    """Whether the nodes have met, or whom node 0 waits for; empty when it says neither."""
    waits = gang.get("waits")
    if gang.get("met") is True:
        return {"met": True}
    return {"waits": _word(waits, MAX_WHY)} if isinstance(waits, str) and waits else {}


def _of_attempt(status: Mapping[str, Any], number: int) -> Status:
    """The progress that is known of this attempt: a former one may have come further."""
    known = status.get("progress") or {}
    return dict(known) if known.get("attempt") == number else {"attempt": number}


def _merged(status: Mapping[str, Any], report: Report, progress: Status, now: datetime | None) -> Status:
    if progress.get("maxSteps") and "step" in progress:
        progress["percent"] = min(100, 100 * progress["step"] // progress["maxSteps"])
    metrics = {one["name"]: one["value"] for one in status.get("metrics") or ()} | dict(report.metrics)
    merged = {**status, "progress": progress}
    if left_out := max(progress.get("metricsLeftOut", 0), len(metrics) - MAX_METRICS):
        progress["metricsLeftOut"] = left_out
    if metrics:
        merged["metrics"] = [{"name": name, "value": value} for name, value in _bounded(metrics, report.metrics)]
    if report.best:
        merged["best"] = dict(report.best)
    if report.checkpoint:
        merged["checkpoint"] = _with_time(report.checkpoint, status.get("checkpoint") or {})
    if report.slowest:
        known = status.get("slowest") or {}
        same = (known.get("attempt"), known.get("rank")) == (progress["attempt"], report.slowest["rank"])
        merged["slowest"] = {**(known if same else {}), "attempt": progress["attempt"], **report.slowest}
    elif report.slowest is not None:
        merged.pop("slowest", None)
    if report.anomalies:
        since = {key: value for key, value in (status.get("anomalies") or {}).items() if key == "since"}
        merged["anomalies"] = {**since, **report.anomalies}
    if memory := _memory_of(status, progress["attempt"], report):
        merged["memory"] = memory
    if report.runs:
        known = {one["tracker"]: one["url"] for one in status.get("runs") or ()} | dict(report.runs)
        merged["runs"] = [{"tracker": name, "url": url} for name, url in sorted(known.items())][:MAX_RUNS]
    if report.model:
        merged["model"] = {"url": report.model}
    shown = display.training(merged) | (display.ending(progress, now) if now else {})
    merged["display"] = {**(status.get("display") or {}), **shown}
    return merged


def _memory_of(status: Mapping[str, Any], attempt: int, report: Report) -> Status:
    """The peak that this attempt measured so far, beside what it was expected to need; empty while neither is known."""
    known = status.get("memory") or {}
    known = known if known.get("attempt") == attempt else {}
    peak = _number(report.metrics.get(_PEAK))
    measured = {} if peak is None else {"peak": max(peak, known.get("peak", 0.0))}
    found = {**known, **report.memory, **measured}
    return {"attempt": attempt, **found} if found else {}


def _bounded(metrics: Mapping[str, str], newest: Mapping[str, str]) -> list[tuple[str, str]]:
    """At most MAX_METRICS, by name; when there are more, those just told stay."""
    kept = sorted(metrics, key=lambda name: name not in newest)[:MAX_METRICS]
    return [(name, metrics[name]) for name in sorted(kept)]


def _with_time(checkpoint: Mapping[str, Any], known: Mapping[str, Any]) -> Status:
    """A final word names the checkpoint alone: the time is kept when it was told before."""
    same = known.get("path") == checkpoint.get("path")
    return {**known, **checkpoint} if same and known.get("time") else dict(checkpoint)


def _open_attempt(status: Mapping[str, Any]) -> int | None:
    attempts = status.get("attempts") or ()
    return attempts[-1]["attempt"] if attempts and "endTime" not in attempts[-1] else None


def _of_wire(standard: Mapping[str, Any], own: Mapping[str, Any]) -> Report:
    metrics, counters = _metrics(standard.get("metrics"))
    progress = {
        "percent": _integer(standard.get("progressPercentage"), 100),
        **counters,
        **{name: _integer(own.get(name)) for name in ("step", "maxSteps") if name in own},
        **{name: _number(own.get(name)) for name in ("epoch", "samplesPerSecond", "tokensPerSecond") if name in own},
        "metricsLeftOut": _integer(own.get("metricsLeftOut")) or None,
        "activity": _word(own["activity"], MAX_ACTIVITY) if isinstance(own.get("activity"), str) else None,
    }
    return Report(
        progress=_known(progress),
        remaining_seconds=_integer(standard.get("estimatedRemainingSeconds"), _FAR),
        metrics=metrics,
        best=_best(own.get("best")),
        checkpoint=_checkpoint(own.get("checkpoint")),
        runs=_runs(own.get("runs")),
        model=_url(_mapping(own.get("model")).get("url")),
        clock=_mapping(own.get("clock")) or None,
        round=_integer(own.get("round"), MAX_RESTARTS + 1),
        slowest=_slowest(own["slowest"]) if isinstance(own.get("slowest"), Mapping) else None,
        anomalies=_anomalies(_mapping(own.get("anomalies"))),
        memory=_memory(_mapping(own.get("memory"))),
    )


def _of_word(word: Termination, time: datetime | None) -> Report:
    progress = {"step": _integer(word.step), "maxSteps": _integer(word.max_steps), "epoch": _number(word.epoch)}
    path, checkpoint = word.checkpoint, None
    if isinstance(path, str) and path:
        step = _integer(path.rpartition("-")[2])
        checkpoint = _known({"path": _word(path, MAX_PATH), "step": step, "time": write_time(time) if time else None})
    listed = [{"name": name, "value": value} for name, value in _mapping(word.metrics).items()]
    return Report(
        _known(progress),
        metrics=_metrics(listed)[0],
        best=_best(word.best),
        checkpoint=checkpoint,
        clock=_mapping(word.clock) or None,
        anomalies=_anomalies(_mapping(word.anomalies)),
    )


def _metrics(listed: Any) -> tuple[dict[str, str], Status]:
    """Metrics as text by name, and apart from them the counters that some trainers tell among them."""
    metrics: dict[str, str] = {}
    counters: Status = {}
    for one in listed if isinstance(listed, list) else ():
        given, value = _mapping(one).get("name"), _text(_mapping(one).get("value"))
        name = _word(given, MAX_NAME) if isinstance(given, str) else ""
        if not name or value is None:
            continue
        if name in _COUNTERS:
            read = _number(value)
            counters[_COUNTERS[name]] = read if name == "current_epoch" else _integer(read)
        else:
            metrics[name] = value
    return metrics, _known(counters)


def _checkpoint(value: Any) -> Status | None:
    one = _mapping(value)
    if not isinstance(path := one.get("path"), str) or not path:
        return None
    time = read_time(one["time"]) if isinstance(one.get("time"), str) else None
    step = _integer(one.get("step"))
    return _known({"path": _word(path, MAX_PATH), "step": step, "time": time and write_time(time)})


def _slowest(value: Mapping[str, Any]) -> Status:
    rank, factor, step = _integer(value.get("rank")), _number(value.get("factor")), _integer(value.get("step"))
    return {"rank": rank, "factor": factor, "step": step or 0} if rank is not None and factor else {}


def _anomalies(value: Mapping[str, Any]) -> Status | None:
    numbers = {name: _integer(value.get(name)) for name in ("count", "rollbacks", "step", "rank")}
    kind, action = value.get("kind"), value.get("action")
    if None in numbers.values() or kind not in ANOMALIES or action not in ON_ANOMALY[1:]:
        return None
    return {**numbers, "kind": kind, "action": action}


def _memory(value: Mapping[str, Any]) -> dict[str, float]:
    """In GiB; empty unless the sum and each part is there."""
    names = ("estimate", *MEMORY_PARTS)
    sizes = {name: size for name in names if (size := _number(value.get(name))) is not None}
    return {name: round(size / _GIB, 3) for name, size in sizes.items()} if len(sizes) == len(names) else {}


def _best(value: Any) -> Status | None:
    one = _mapping(value)
    if not isinstance(metric := one.get("metric"), str):
        return None
    path = one.get("checkpoint")
    return _known(
        {
            "metric": _word(metric, MAX_NAME),
            "value": _text(one.get("value")),
            "step": _integer(one.get("step")),
            "checkpoint": _word(path, MAX_PATH) if isinstance(path, str) else None,
        }
    )


def _runs(listed: Any) -> dict[str, str]:
    found = {}
    for one in map(_mapping, listed[:MAX_RUNS] if isinstance(listed, list) else ()):
        given, url = one.get("tracker"), _url(one.get("url"))
        name = _word(given, MAX_VALUE) if isinstance(given, str) else ""
        if name and url is not None:
            found[name] = url
    return found


def _url(value: Any) -> str | None:
    """An address that a browser opens: a terminal or a page may make a link of it."""
    if not isinstance(value, str) or len(value) > MAX_URL or display.plain(value) != value or " " in value:
        return None
    return value if value.startswith(("https://", "http://")) else None


def _known(values: Mapping[str, Any]) -> Status:
    return {key: value for key, value in values.items() if value is not None}


def _word(text: str, most: int) -> str:
    return display.plain(text[: 2 * most])[:most]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _integer(value: Any, most: int = _INT64) -> int | None:
    number = _number(value)
    return min(int(number), most) if number is not None else None


def _text(value: Any) -> str | None:
    """A metric's value: a number in at most six digits, or a short text as it was told."""
    if isinstance(value, str):
        return _word(value, MAX_VALUE)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return f"{value:.6g}"
    except OverflowError:  # JSON's integers have no end
        return None
