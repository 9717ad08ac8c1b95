"""The page: one HTML file that loads nothing, with its style, its script and its numbers inside.

Plot areas are SVG that stretches with the window; their labels are HTML, so that text keeps its size on any screen. The
page works without its script, which adds the reading of values, the theme, and the updates of a live page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from trainwright_operator import __version__
from trainwright_operator.core import goodput
from trainwright_operator.report.charts import Chart, charts_of, number, segments, spoken
from trainwright_operator.report.run import Run
from trainwright_operator.report.series import Point
from trainwright_operator.report.summary import ATTEMPTS, attempts, duration, facts, metrics, times

DASHES = ("", "7 4", "2 4", "9 3 2 3", "14 4", "4 2 1 2", "1 3", "10 2 2 2 2 2")
"""The dashes of a line by its style; its colour is the CSS variable of the same number."""
_TABLE_ROWS = 14
_LOST_SHOWN = 24
_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Live:
    """A page that reloads itself every ``seconds``."""

    seconds: float


def page(runs: Sequence[Run], now: datetime, live: Live | None = None) -> str:
    """The whole page for runs that have the same axis."""
    return "\n".join(_page(runs, now, live)) + "\n"


def _page(runs: Sequence[Run], now: datetime, live: Live | None) -> Iterator[str]:
    charts, left_out = charts_of(runs)
    axis = runs[0].curves.axis
    title = escape(", ".join(run.name for run in runs))
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    state = f": {escape(runs[0].state)}" if len(runs) == 1 and runs[0].state else ""
    yield f"<title>{title}{state}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>"
    yield from _header(runs, live)
    yield "<main>"
    yield from (f'<p class="note">{escape(note)}</p>' for note in _notes(runs, left_out))
    if len(runs) == 1:
        yield from _tiles(runs[0])
        yield from _time_spent(runs[0])
        yield from _attempts(runs[0])
    else:
        yield from _comparison(runs)
    if charts:
        yield f'<h2>Curves by {axis}</h2>\n<div class="charts">'
        for at, chart in enumerate(charts):
            yield from _figure(at, chart, axis)
        yield "</div>"
    else:
        yield '<p class="note">No metrics were logged yet.</p>'
    for run in runs:
        yield from _details(run, alone=len(runs) == 1)
    written = now.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    yield f"<footer>Written by trainwright {escape(__version__)} on {escape(written)}.</footer>\n</main>"
    yield f'<script type="application/json" id="data">{_data(charts, axis)}</script>'
    yield f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>"


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _data(charts: Sequence[Chart], axis: str) -> str:
    across = charts[0].x if charts else None
    content = {
        "axis": axis,
        "low": across.low if across else 0,
        "high": across.high if across else 1,
        "charts": [
            {
                "lines": [
                    {
                        "label": line.label,
                        "x": [_short(x) for x, _ in line.points],
                        "y": [_short(y) for _, y in line.points],
                    }
                    for line in chart.lines
                ]
            }
            for chart in charts
        ],
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _short(value: float) -> float:
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# The parts of the page


def _header(runs: Sequence[Run], live: Live | None) -> Iterator[str]:
    yield '<header>\n<div class="top">\n<div>'
    if len(runs) == 1:
        run = runs[0]
        state = f' <span class="state {escape(run.state)}">{escape(run.state)}</span>' if run.state else ""
        yield f"<h1>{escape(run.name)}{state}</h1>"
        message = run.summary.message if run.summary is not None else ""
        yield f'<p class="where">{escape(run.source)}{f": {escape(message)}" if message else ""}</p>'
    else:
        yield f"<h1>{len(runs)} runs compared</h1>"
        yield f'<p class="where">{escape(", ".join(run.name for run in runs))}</p>'
    yield '</div>\n<div class="tools">'
    if live is not None:
        yield f'<button type="button" id="pause" data-seconds="{live.seconds:g}" hidden>Pause updates</button>'
    yield '<button type="button" id="theme" aria-label="Change between light and dark" hidden>Dark</button>'
    yield "</div>\n</div>\n</header>"


def _notes(runs: Sequence[Run], left_out: Sequence[str]) -> Iterator[str]:
    for run in runs:
        where = f"{run.name}: " if len(runs) > 1 else ""
        yield from (f"{where}{note}" for note in run.notes)
        lost = [name for name, series in run.curves.series.items() if series.lost]
        if lost:
            yield f"{where}values that are not finite numbers (NaN or infinity), marked \u00d7: {', '.join(lost)}"
    if left_out:
        yield f"{len(left_out)} more metrics are not drawn: {', '.join(left_out)}"


def _tiles(run: Run) -> Iterator[str]:
    tiles = list(_key_numbers(run))
    if tiles:
        yield '<dl class="tiles">'
        for name, value, more in tiles:
            small = f"<small>{escape(more)}</small>" if more else ""
            yield f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>'
        yield "</dl>"


def _key_numbers(run: Run) -> Iterator[tuple[str, str, str]]:
    series, axis = run.curves.series, run.curves.axis
    for name, title in (("loss", "Loss"), ("eval_loss", "Evaluation loss")):
        one = series.get(name)
        if one is not None and one.last is not None and one.lowest is not None:
            yield title, number(one.last[1]), f"lowest {number(one.lowest[1])} at {axis} {number(one.lowest[0])}"
    if "steps" in run.facts:
        done, _, of = run.facts["steps"].partition(" of ")
        yield "Steps", number(float(done)), f"of {of}"
    elif run.summary is not None and run.summary.progress.get("step"):
        yield "Steps", str(run.summary.progress["step"]), f"of {run.summary.progress.get('maxSteps', '?')}"
    if "best" in run.facts:
        value, _, at = run.facts["best"].partition(" at ")
        yield "Best", value, f"at {at}" if at else ""
    if run.summary is not None and run.summary.seconds is not None:
        yield (
            "Time",
            duration(run.summary.seconds),
            f"{len(run.summary.attempts)} attempts" * (len(run.summary.attempts) > 1),
        )
    elif "train_runtime" in run.curves.totals:
        yield "Time", duration(round(run.curves.totals["train_runtime"])), "training"
    if run.summary is not None and (rate := run.summary.progress.get("tokensPerSecond")):
        yield "Throughput", number(rate), "tokens per second"
    elif "train_samples_per_second" in run.curves.totals:
        yield "Throughput", number(run.curves.totals["train_samples_per_second"]), "samples per second"


def _time_spent(run: Run) -> Iterator[str]:
    """A bar and a table of what the job's life went to."""
    spent = times(run.summary) if run.summary is not None else []
    if run.summary is None or not spent:
        return
    seconds = run.summary.goodput["goodput"]["seconds"]
    parts = [
        f'<span class="{cause}" style="flex:{max(seconds[cause], 0.001):g}" title="{cause}: {amount} {share}"></span>'
        for cause, amount, share, _ in spent
    ]
    yield '<h2>Where the time went</h2>\n<div class="card">'
    yield f'<div class="time spent" aria-hidden="true">{"".join(parts)}</div>'
    said = "; ".join(f"{name}: {value}" for name, value in goodput.facts(run.summary.goodput))
    yield f'<p class="said">{escape(said)}.</p>' if said else ""
    yield '<div class="scroll" tabindex="0" role="region" aria-label="Where the time went">'
    yield _table(["Cause", "Time", "Share", "What it is"], spent, "What the job's life went to", first=True)
    yield "</div></div>"


def _attempts(run: Run) -> Iterator[str]:
    summary = run.summary
    if summary is None or not summary.attempts:
        return
    yield "<h2>Attempts</h2>"
    yield '<div class="card">'
    if len(summary.attempts) > 1:
        yield from _timeline(run)
    heads = [heading.capitalize() for heading in ATTEMPTS]
    yield '<div class="scroll attempts" tabindex="0" role="region" aria-label="Attempts">'
    yield _table(heads, attempts(summary), "Attempts of this run")
    yield "</div></div>"


def _timeline(run: Run) -> Iterator[str]:
    """A bar with the time of each attempt, and the waiting between them."""
    assert run.summary is not None
    ends: datetime | None = None
    parts, worked, waited = [], 0, 0
    for one in run.summary.attempts:
        start = datetime.fromisoformat(one.start.replace("Z", "+00:00"))
        gap = round((start - ends).total_seconds()) if ends is not None else 0
        if gap > 0:
            parts.append(f'<span class="gap" style="flex:{gap}" title="waited {duration(gap)}"></span>')
            waited += gap
        outcome = escape(one.outcome)
        parts.append(
            f'<span class="{outcome}" style="flex:{max(one.seconds, 1)}" '
            f'title="attempt {one.number}: {outcome}, {duration(one.seconds)}">{one.number}</span>'
        )
        worked += one.seconds
        ends = datetime.fromtimestamp(start.timestamp() + one.seconds, start.tzinfo)
    share = round(100 * worked / max(worked + waited, 1))
    yield f'<div class="time" aria-hidden="true">{"".join(parts)}</div>'
    yield f'<p class="said">{share}% of the time in attempts ({duration(worked)}), {duration(waited)} between them.</p>'


def _comparison(runs: Sequence[Run]) -> Iterator[str]:
    names = [run.name for run in runs]
    yield '<h2>Results</h2>\n<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Results">'
    yield _table(["Metric", *names], _results(runs), "Latest value of each metric", first=True)
    yield "</div></div>"
    rows = differences(runs)
    yield "<h2>Arguments that differ</h2>"
    if not rows:
        yield "<p>All arguments are equal, or none are known.</p>"
        return
    yield '<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Arguments that differ">'
    yield _table(["Argument", *names], rows, "Arguments that differ between the runs", first=True)
    yield "</div></div>"


def _results(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for run in runs for name in run.curves.series)
    rows: list[tuple[str, ...]] = [("state", *(run.state for run in runs))] if any(run.state for run in runs) else []
    for name in sorted(names, key=lambda name: (not name.endswith("loss"), name)):
        found = [run.curves.series.get(name) for run in runs]
        rows.append((name, *(number(one.last[1]) if one is not None and one.last else "" for one in found)))
    return rows


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row for each argument whose values differ: its name, and the value of each run."""
    rows = []
    for name in sorted({name for run in runs for name in run.arguments}):
        values = [run.arguments.get(name, "") for run in runs]
        if name != "output_dir" and len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1:
            rows.append((name, *map(_value, values)))
    return rows


def _details(run: Run, alone: bool) -> Iterator[str]:
    yield f"<h2>{'Details' if alone else escape(run.name)}</h2>"
    if run.summary is not None:
        yield from _box(
            "Run", _table((), [row for row in facts(run.summary) if row[0] != "arguments"], "Run", first=True)
        )
        if run.summary.metrics:
            yield from _box("Latest metrics", _table(("Metric", "Value"), metrics(run.summary), "Metrics", first=True))
        if not alone and run.summary.attempts:
            heads = [heading.capitalize() for heading in ATTEMPTS]
            yield from _box("Attempts", _table(heads, attempts(run.summary), "Attempts"))
    elif run.facts:
        yield from _box("Run", _table((), list(run.facts.items()), "Run", first=True))
    if run.curves.totals:
        rows = [(name, number(value)) for name, value in run.curves.totals.items()]
        yield from _box("Totals", _table((), rows, "Totals", first=True))
    if run.arguments:
        rows = [(name, _value(value)) for name, value in sorted(run.arguments.items())]
        yield from _box(f"Arguments ({len(rows)})", _table((), rows, "Arguments", first=True))
    if run.environment:
        yield from _box("Environment", _table((), list(run.environment.items()), "Environment", first=True))


def _box(title: str, table: str) -> Iterator[str]:
    yield f'<details class="box"><summary>{escape(title)}</summary>'
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div></details>'


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, first: bool = False) -> str:
    """``first``: the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = []
    for row in rows:
        cells = [
            f'<th scope="row">{escape(text)}</th>' if first and at == 0 else f'<td class="number">{escape(text)}</td>'
            for at, text in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    heading = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<table><caption class="hidden">{escape(caption)}</caption>{heading}<tbody>{"".join(body)}</tbody></table>'


# A chart


def _figure(at: int, chart: Chart, axis: str) -> Iterator[str]:
    wide = " wide" if at == 0 else ""
    yield f'<figure class="chart{wide}" aria-labelledby="t{at}">'
    yield f'<figcaption><h3 id="t{at}">{escape(chart.title)}</h3>'
    if len(chart.lines) > 1:
        items = "".join(f"<li>{_swatch(line.style)}{escape(line.label)}</li>" for line in chart.lines)
        yield f'<ul class="legend">{items}</ul>'
    scale = " (logarithmic)" if chart.y.log else ""
    yield '</figcaption>\n<div class="plot">'
    widest = max((number(tick) for tick in chart.y_ticks), key=len, default="")
    ticks = "".join(f'<span style="bottom:{100 * chart.y.place(t):.2f}%">{number(t)}</span>' for t in chart.y_ticks)
    yield f'<div class="y" aria-hidden="true"><i>{widest}</i>{ticks}</div>'
    label = f"{escape(chart.title)}{scale}: read the values with the arrow keys"
    yield (
        f'<div class="area" data-chart="{at}" tabindex="0" role="slider" aria-label="{label}" aria-describedby="s{at}" '
        f'aria-valuemin="{chart.x.low:g}" aria-valuemax="{chart.x.high:g}" aria-valuenow="{chart.x.high:g}">'
    )
    yield _svg(chart)
    yield from _marks(chart)
    yield '<div class="cursor"></div><div class="tip"></div></div>'
    yield f'<div class="x" aria-hidden="true">{"".join(_x_ticks(chart))}</div>\n</div>'
    yield f'<p class="said" id="s{at}">{escape(spoken(chart, axis))}{" Logarithmic scale." if scale else ""}</p>'
    rows = [(number(x), *(number(y) if y is not None else "" for y in values)) for x, values in _sampled(chart)]
    table = _table([axis, *(line.label for line in chart.lines)], rows, f"{chart.title} by {axis}")
    yield f"<details><summary>Data table<span class='hidden'> of {escape(chart.title)}</span></summary>"
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(chart.title)}: values">{table}</div>'
    yield "</details></figure>"


def _swatch(style: int) -> str:
    return (
        f'<svg viewBox="0 0 26 8" aria-hidden="true"><path d="M0 4H26" class="line" stroke="{_colour(style)}"'
        f"{_dash(style)}/></svg>"
    )


def _colour(style: int) -> str:
    return f"var(--s{style % 8})"


def _dash(style: int) -> str:
    dash = DASHES[style % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _x_ticks(chart: Chart) -> Iterator[str]:
    for tick in chart.x_ticks:
        place = chart.x.place(tick)
        edge = ' class="end"' if place > 0.97 else ' class="start"' if place < 0.01 else ""
        yield f'<span{edge} style="left:{100 * place:.2f}%">{number(tick)}</span>'


def _svg(chart: Chart) -> str:
    keep = 'vector-effect="non-scaling-stroke"'
    parts = [
        f'<path class="{"base" if at == 0 else "grid"}" {keep} d="M0 {_down(chart, tick)}H1000"/>'
        for at, tick in enumerate(chart.y_ticks)
    ]
    parts += [f'<path class="attempt" {keep} d="M{_across(chart, mark.x)} 0V400"/>' for mark in chart.marks]
    for line in chart.lines:
        colour = _colour(line.style)
        drawn = "".join(_path(chart, part) for part in segments(line))
        if drawn:
            parts.append(f'<path class="line" {keep} stroke="{colour}"{_dash(line.style)} d="{drawn}"/>')
        if line.dotted and line.points:
            dots = "".join(f"M{_across(chart, x)} {_down(chart, y)}h0" for x, y in line.points)
            parts.append(f'<path class="dots" {keep} stroke="{colour}" d="{dots}"/>')
    return f'<svg viewBox="0 0 1000 400" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


def _path(chart: Chart, points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_across(chart, x)} {_down(chart, y)}" for x, y in points)


def _across(chart: Chart, x: float) -> str:
    return f"{1000 * chart.x.place(x):.1f}".removesuffix(".0")


def _down(chart: Chart, y: float) -> str:
    return f"{400 * (1 - chart.y.place(y)):.1f}".removesuffix(".0")


def _marks(chart: Chart) -> Iterator[str]:
    """The names of attempts, and a cross where a value is not finite."""
    for mark in chart.marks:
        place = chart.x.place(mark.x)
        side = " left" if place > 0.75 else ""
        yield f'<span class="mark{side}" aria-hidden="true" style="left:{100 * place:.2f}%">{escape(mark.label)}</span>'
    for line in chart.lines:
        lost = line.series.lost
        every = max(1, len(lost) // _LOST_SHOWN)
        for x in lost[::every]:
            yield f'<span class="lost" aria-hidden="true" style="left:{100 * chart.x.place(x):.2f}%">\u00d7</span>'


def _sampled(chart: Chart) -> Iterator[tuple[float, list[float | None]]]:
    """Rows for the table: at even distances, and at the extremes and values that are not finite of each line."""
    places: set[float] = set()
    for line in chart.lines:
        xs = [x for x, _ in line.points]
        places |= set(xs[:: max(1, len(xs) // _TABLE_ROWS)]) | set(xs[-1:]) | set(line.series.lost[:3])
        places |= {point[0] for point in (line.series.lowest, line.series.highest) if point is not None}
    values = [dict(line.points) | dict.fromkeys(line.series.lost, float("nan")) for line in chart.lines]
    for x in sorted(places):
        yield x, [known.get(x) for known in values]
