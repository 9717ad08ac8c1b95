"""``trainwright report``: summarizes a run as text, Markdown, HTML or JSON.

The HTML is one self-contained file, to store with a model or to send to others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape

from trainwright_operator.remote.cluster import Cluster
from trainwright_operator.remote.command import DONE, command, show
from trainwright_operator.remote.jobs import find_job
from trainwright_operator.remote.rendering import ATTEMPTS, attempts, facts, metrics, to_markdown, to_screen
from trainwright_operator.remote.summary import Curve, Summary, read_curves, summarize


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    job = find_job(cluster, options.name)
    summary = summarize(job, datetime.now().astimezone(), read_curves(cluster, job))
    if options.format == "json":
        print(summary.to_json(), end="")
    elif options.format == "md":
        print(to_markdown(summary), end="")
    elif options.format == "html":
        print(to_html(summary), end="")
    else:
        show(to_screen(summary))
    return DONE


WIDTH, HEIGHT, MARGIN, LEFT = 720, 260, 28, 52
COLOURS = ("#2563eb", "#d97706")
TICKS = 4
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937; }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem } .where { color: #6b7280; margin-top: 0 }
table { border-collapse: collapse } th, td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0 }
th { color: #6b7280; font-weight: 500 } tbody tr { border-top: 1px solid #e5e7eb }
.Succeeded { color: #15803d } .Failed { color: #b91c1c } .Running { color: #1d4ed8 }
svg { max-width: 100%; height: auto } svg text { font-size: 12px; fill: #6b7280 }
@media (prefers-color-scheme: dark) { body { background: #111827; color: #e5e7eb } tbody tr { border-color: #374151 } }
"""


def to_html(summary: Summary) -> str:
    return "\n".join(_page(summary)) + "\n"


def _page(summary: Summary) -> Iterator[str]:
    name, state = escape(summary.name), escape(summary.state)
    yield f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}: {state}</title>'
    yield f"<style>{STYLE}</style>\n</head>\n<body>"
    yield f'<h1>{name} <span class="{state}">{state}</span></h1>'
    yield f'<p class="where">TrainingJob in namespace {escape(summary.namespace)}</p>'
    known = {name: [point for point in curve if math.isfinite(point[1])] for name, curve in summary.curves.items()}
    if drawn := {name: curve for name, curve in known.items() if curve}:
        yield f"<h2>Loss</h2>\n{_chart(drawn)}"
    yield "<h2>Run</h2>"
    yield _table((), facts(summary))
    if summary.metrics:
        yield "<h2>Metrics</h2>"
        yield _table(("metric", "value"), metrics(summary))
    if summary.attempts:
        yield "<h2>Attempts</h2>"
        yield _table([heading.lower() for heading in ATTEMPTS], attempts(summary))
    yield "</body>\n</html>"


def _table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(f"<tr>{''.join(_cells(row, first_heads=not headings))}</tr>" for row in rows)
    return f"<table>\n{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>\n{body}\n</tbody>\n</table>"


def _cells(row: tuple[str, ...], *, first_heads: bool) -> Iterator[str]:
    for index, text in enumerate(row):
        tag = "th" if first_heads and index == 0 else "td"
        yield f"<{tag}>{escape(text)}</{tag}>"


# The chart


def _chart(curves: dict[str, Curve]) -> str:
    points = [point for curve in curves.values() for point in curve]
    (left, right), (low, high) = _range(x for x, _ in points), _range(y for _, y in points)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - left) / (right - left) * (WIDTH - LEFT - MARGIN)
        return x, HEIGHT - MARGIN - (point[1] - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    steps = [step / TICKS for step in range(TICKS + 1)]
    parts = [
        *(_grid(place((left, low + step * (high - low)))[1], low + step * (high - low)) for step in steps),
        *(_epoch(place((left + step * (right - left), low))[0], left + step * (right - left)) for step in steps),
        *(_line(name, [place(point) for point in curve], at) for at, (name, curve) in enumerate(curves.items())),
    ]
    title = f"<title>{escape(' and '.join(curves))} by epoch</title>"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{title}\n{chr(10).join(parts)}\n</svg>'


def _range(values: Iterator[float]) -> tuple[float, float]:
    """Minimum and maximum; never an empty range."""
    known = list(values)
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(y: float, value: float) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#9ca3af" stroke-opacity=".3"/>'
    return f'{line}<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'


def _epoch(x: float, value: float) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{value:.3g}</text>'


def _line(name: str, places: list[tuple[float, float]], at: int) -> str:
    colour, path = COLOURS[at % len(COLOURS)], " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places)
    label = f'<text x="{WIDTH - MARGIN}" y="{MARGIN - 10 + 16 * at}" text-anchor="end" style="fill: {colour}">'
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'
    return f"{drawn}{label}{escape(name)}</text>"
