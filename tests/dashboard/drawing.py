"""The dashboard as a page: each panel as a small SVG at its place in the grid, with its units and legend."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from dashboard.panels import Panel, legend
from dashboard.prometheus import Prometheus, Series

WIDE, HIGH, LEFT, TOP, BOTTOM = 560, 250, 62, 34, 22
COLOURS = ("#0072b2", "#c24a00", "#007a5e", "#a23b7c", "#806300", "#4b3fa7", "#5a5f66", "#d4a017", "#8c2f2f", "#3aa6a6")
LEGEND_LINE = 17
STYLE = """body{margin:12px;background:#f3f4f6;font:12px system-ui,sans-serif;color:#16191d;width:1140px}
main{position:relative}section{position:absolute;background:#fff;border:1px solid #dfe3e8;border-radius:4px}
svg{display:block}text{font-size:11px;fill:#555e6b}.title{font-size:13px;font-weight:600;fill:#16191d}"""


def amount(value: float, unit: str, decimals: int | None = None) -> str:
    """A value in the unit of its panel, as Grafana writes it."""
    if unit == "percentunit":
        return f"{100 * value:.0f}%" if decimals is None else f"{100 * value:.{decimals}f}%"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    number = f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"
    return number + {"s": " s", "reqps": " req/s"}.get(unit, "")


def page(panels: Sequence[Panel], server: Prometheus, start: float, end: float) -> str:
    step = max(1.0, (end - start) / 240)
    sections = []
    for panel in panels:
        curves = [
            (legend(form, labels), points)
            for expression, form in panel.targets
            for labels, points in _merged(server.curve(expression, start, end, step))
            if points
        ]
        x, y = panel.x / 12 * (WIDE + 10), panel.y / 8 * (HIGH + 10)
        place = f"left:{x:.0f}px;top:{y:.0f}px"
        sections.append(f'<section style="{place}">{picture(panel, curves, start, end)}</section>')
    high = max(panel.y for panel in panels) / 8 * (HIGH + 10) + HIGH
    main = f'<main style="height:{high:.0f}px">{"".join(sections)}</main>'
    return f'<!doctype html><meta charset="utf-8"><title>Trainwright</title><style>{STYLE}</style>{main}'


def _merged(found: Sequence[Series]) -> list[Series]:
    """Series that differ in labels which no legend names, such as the pod of a former leader, one after the other."""
    return sorted(found, key=lambda one: sorted(one[0].items()))


def picture(panel: Panel, curves: list[tuple[str, list[tuple[float, float]]]], start: float, end: float) -> str:
    rows = _legend_rows([name for name, _ in curves])
    floor = HIGH - BOTTOM - LEGEND_LINE * len(rows) - 4
    if panel.stacked:
        curves = _stacked(curves)
    top = max((value for _, points in curves for _, value in points), default=1.0) or 1.0
    ticks = _ticks(1.0 if panel.stacked else top)

    def place(at: float, value: float) -> str:
        x = LEFT + (WIDE - LEFT - 14) * (at - start) / (end - start)
        return f"{x:.1f},{floor - (floor - TOP) * value / ticks[-1]:.1f}"

    parts = [f'<text class="title" x="12" y="20">{html.escape(panel.title)}</text>']
    for tick in ticks:
        y = place(start, tick).split(",")[1]
        parts.append(f'<path d="M{LEFT} {y}H{WIDE - 14}" stroke="#e1e5ea"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{float(y) + 4:.0f}" text-anchor="end">{_tick(tick, panel, ticks)}</text>'
        )
    for second in range(0, int(end - start) + 1, 30):
        x = place(start + second, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{second // 60}:{second % 60:02}</text>')
    below = [" ".join(place(at, 0) for at, _ in reversed(points)) for _, points in curves[:1]]
    for index, (_, points) in enumerate(curves):
        colour, drawn = COLOURS[index % len(COLOURS)], [place(*point) for point in points]
        if panel.stacked:
            parts.append(f'<polygon points="{" ".join(drawn)} {below[-1]}" fill="{colour}" fill-opacity=".75"/>')
            below.append(" ".join(reversed(drawn)))
        else:
            parts += [_line(part, colour, place) for part in _parts(points, (end - start) / 40)]
    for line, row in enumerate(rows):
        for x, index in row:
            y = floor + 34 + LEGEND_LINE * line
            parts.append(f'<path d="M{x} {y - 4}h14" stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="3"/>')
            parts.append(f'<text x="{x + 19}" y="{y}">{html.escape(curves[index][0])}</text>')
    return f'<svg width="{WIDE}" height="{HIGH}">{"".join(parts)}</svg>'


def _line(points: list[tuple[float, float]], colour: str, place) -> str:
    if len(points) == 1:
        x, y = place(*points[0]).split(",")
        return f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>'
    drawn = " ".join(place(*point) for point in points)
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _parts(points: list[tuple[float, float]], most: float) -> list[list[tuple[float, float]]]:
    """A line ends where nothing was measured for a while."""
    parts: list[list[tuple[float, float]]] = []
    for point in points:
        if not parts or point[0] - parts[-1][-1][0] > most:
            parts.append([])
        parts[-1].append(point)
    return parts


def _stacked(curves: list[tuple[str, list[tuple[float, float]]]]) -> list[tuple[str, list[tuple[float, float]]]]:
    times = sorted({at for _, points in curves for at, _ in points})
    total, found = dict.fromkeys(times, 0.0), []
    for name, points in curves:
        for at, value in points:
            total[at] += value
        found.append((name, sorted(total.items())))
    return found


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, int]]]:
    rows, x = [[]] if names else [], LEFT  # type: ignore[var-annotated]
    for index, name in enumerate(names):
        wide = 34 + round(6.3 * len(name))
        if rows[-1] and x + wide > WIDE:
            rows.append([])
            x = LEFT
        rows[-1].append((x, index))
        x += wide
    return rows


def _ticks(top: float) -> list[float]:
    rough = top / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough)
    return [step * number for number in range(math.ceil(top / step - 1e-9) + 1)]


def _tick(tick: float, panel: Panel, ticks: Sequence[float]) -> str:
    whole = all(float(one).is_integer() for one in ticks)
    return amount(tick, panel.unit, panel.decimals if whole or panel.decimals else None)
