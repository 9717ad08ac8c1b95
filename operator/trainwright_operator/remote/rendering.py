"""Renders a summary for a terminal or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwright_operator.remote.board import STYLES
from trainwright_operator.remote.summary import Summary, duration, sparkline
from trainwright_operator.remote.tables import section

ATTEMPTS = ("ATTEMPT", "STARTED", "TOOK", "STEP", "ENDED", "WHY")

Rows = list[tuple[str, str]]


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


def metrics(summary: Summary) -> list[tuple[str, str]]:
    left_out = summary.progress.get("metricsLeftOut")
    return [
        *summary.metrics.items(),
        *([("...", f"and {left_out} more, which are not in the status")] if left_out else []),
    ]


def to_screen(summary: Summary) -> RenderableType:
    title = Text(f"{summary.name}", style="bold")
    title.append(f"  namespace {summary.namespace}", style="dim")
    pairs = Table.grid(padding=(0, 2))
    pairs.add_column(style="dim", no_wrap=True)
    pairs.add_column(overflow="fold")
    for name, value in facts(summary):
        pairs.add_row(name, Text(value, style=STYLES.get(summary.state, "") if name == "state" else ""))
    return Group(title, pairs, *section(("METRIC", "VALUE"), metrics(summary)), *section(ATTEMPTS, attempts(summary)))


def to_markdown(summary: Summary) -> str:
    return "\n".join(_markdown(summary)) + "\n"


def _markdown(summary: Summary) -> Iterator[str]:
    yield f"# {summary.name}\n"
    yield from _markdown_table(("", ""), facts(summary))
    if summary.metrics:
        yield "\n## Metrics\n"
        yield from _markdown_table(("metric", "value"), metrics(summary))
    if summary.attempts:
        yield "\n## Attempts\n"
        yield from _markdown_table([heading.lower() for heading in ATTEMPTS], attempts(summary))


def _markdown_table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    """Escapes text so that it stays in one cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


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
