"""Each chart as a file of its own, SVG or PNG, for papers and messages: light, with its labels inside.

A chart becomes a list of strokes and texts, which are written as SVG or painted by Pillow. Pillow is the one library
here: it is small, and brings the font that a picture needs, where a renderer of SVG needs those of the system.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from trainwright.contract import UserError
from trainwright_operator.report.charts import Chart, number, segments
from trainwright_operator.report.series import Point

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 92, 24, 84, 64
COLOURS = ("#0072b2", "#c24a00", "#007a5e", "#a23b7c", "#806300", "#5a5f66", "#4b3fa7", "#8c2f2f")
DASHES: tuple[tuple[float, ...], ...] = (
    (), (7, 4), (2, 4), (9, 3, 2, 3), (14, 4), (4, 2, 1, 2), (1, 3), (10, 2, 2, 2, 2, 2),
)  # fmt: skip
TEXT, SOFT, GRID = "#16191d", "#555e6b", "#e1e5ea"
_SMOOTH = 3
"""A PNG is painted this many times larger, and reduced, so that its lines are smooth."""


@dataclass(frozen=True)
class Stroke:
    points: tuple[Point, ...]
    colour: str
    width: float = 1.0
    dash: tuple[float, ...] = ()


@dataclass(frozen=True)
class Text:
    """``anchor``: start, middle or end."""

    x: float
    y: float
    text: str
    size: int = 15
    colour: str = SOFT
    anchor: str = "start"


Shape = Stroke | Text


def drawn(chart: Chart, axis: str) -> list[Shape]:
    """The chart in pixels."""
    return list(_shapes(chart, axis))


def _shapes(chart: Chart, axis: str) -> Iterator[Shape]:
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(point: Point) -> Point:
        return LEFT + wide * chart.x.place(point[0]), TOP + high * (1 - chart.y.place(point[1]))

    yield Text(LEFT, 36, chart.title + (" (logarithmic)" if chart.y.log else ""), 22, TEXT)
    for tick in chart.y_ticks:
        (_, y) = place((chart.x.low, tick))
        yield Stroke(((LEFT, y), (WIDTH - RIGHT, y)), GRID if tick != chart.y_ticks[0] else SOFT)
        yield Text(LEFT - 10, y + 5, number(tick), anchor="end")
    for tick in chart.x_ticks:
        yield Text(place((tick, chart.y.low))[0], HEIGHT - BOTTOM + 24, number(tick), anchor="middle")
    yield Text(LEFT + wide / 2, HEIGHT - 14, axis, anchor="middle")
    for mark in chart.marks:
        x = place((mark.x, chart.y.low))[0]
        yield Stroke(((x, TOP), (x, HEIGHT - BOTTOM)), SOFT, 1.2, (2, 4))
        yield Text(x + 5, TOP + 12, mark.label, 13)
    at = float(LEFT)
    for line in chart.lines:
        colour, dash = COLOURS[line.style % len(COLOURS)], DASHES[line.style % len(DASHES)]
        for part in segments(line):
            yield Stroke(tuple(map(place, part)), colour, 2.2, dash)
        for lost in line.series.lost[:: max(1, len(line.series.lost) // 24)]:
            yield Text(place((lost, chart.y.low))[0], HEIGHT - BOTTOM - 4, "\u00d7", 16, "#b3261e", "middle")
        if len(chart.lines) > 1:
            yield Stroke(((at, 60), (at + 30, 60)), colour, 2.2, dash)
            yield Text(at + 38, 65, line.label, 14)
            at += 62 + 8 * len(line.label)


def to_svg(shapes: Sequence[Shape], title: str) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for shape in shapes:
        if isinstance(shape, Text):
            parts.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" fill="{shape.colour}" '
                f'text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
            )
            continue
        dash = f' stroke-dasharray="{" ".join(f"{part:g}" for part in shape.dash)}"' if shape.dash else ""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width:g}"{dash} '
            'stroke-linejoin="round" stroke-linecap="round"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def save_png(shapes: Sequence[Shape], path: Path) -> None:
    """Raises :class:`UserError` if Pillow is not installed."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise UserError("--png: Pillow is not installed: pip install 'pillow>=11'; --svg needs nothing") from None

    image = Image.new("RGB", (WIDTH * _SMOOTH, HEIGHT * _SMOOTH), "#ffffff")
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        if isinstance(shape, Text):
            font = ImageFont.load_default(shape.size * _SMOOTH)
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            draw.text((shape.x * _SMOOTH, shape.y * _SMOOTH), shape.text, shape.colour, font, anchor)
            continue
        for part in dashed(shape.points, shape.dash):
            scaled = [(x * _SMOOTH, y * _SMOOTH) for x, y in part]
            draw.line(scaled, shape.colour, max(1, round(shape.width * _SMOOTH)), joint="curve")
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(path, optimize=True)


def dashed(points: Sequence[Point], dash: Sequence[float]) -> Iterator[list[Point]]:
    """The visible parts of a dashed line; the whole line without dashes."""
    if not dash:
        yield list(points)
        return
    at, left, part = 0, dash[0], [points[0]]
    for start, end in pairwise(points):
        length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
        done = 0.0
        while length - done > left:
            done += left
            here = start[0] + (end[0] - start[0]) * done / length, start[1] + (end[1] - start[1]) * done / length
            if at % 2 == 0:
                yield [*part, here]
            at, part = at + 1, [here]
            left = dash[at % len(dash)]
        left -= length - done
        if at % 2 == 0:
            part.append(end)
    if at % 2 == 0 and len(part) > 1:
        yield part


def file_name(chart: Chart) -> str:
    """Letters, digits and dashes of its key."""
    return "".join(one if one.isalnum() else "-" for one in chart.key).strip("-").lower() or "chart"
