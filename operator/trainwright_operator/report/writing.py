"""Writes a report: the page, pictures of its charts, and the page again while a run goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from trainwright.contract import UserError
from trainwright_operator.core.policy import FINISHED
from trainwright_operator.report.charts import charts_of
from trainwright_operator.report.images import drawn, file_name, save_png, to_svg
from trainwright_operator.report.page import Live, page
from trainwright_operator.report.run import Run, read_folder
from trainwright_operator.report.series import BUCKETS

FILE = "report.html"
WATCH_SECONDS = 5.0
_FEWEST_BUCKETS = 60

Read = Callable[[str, int], Run]
"""Reads a run by an axis, ``step`` or ``epoch``, with at most this many buckets a curve."""


def read_all(readers: Sequence[Read]) -> list[Run]:
    """All runs by the same axis: the step, or the epoch if the steps of one are unknown."""
    buckets = max(_FEWEST_BUCKETS, BUCKETS // len(readers))
    runs = [read("step", buckets) for read in readers]
    if any(run.curves.unplaced and not run.curves.rows for run in runs):
        runs = [read("epoch", buckets) for read in readers]
    return _named(runs)


def _named(runs: list[Run]) -> list[Run]:
    """Runs of one name are told apart by where they are."""
    for name in {run.name for run in runs}:
        alike = [run for run in runs if run.name == name]
        if len(alike) > 1:
            for run in alike:
                run.name = run.source
    return runs


def write_page(runs: Sequence[Run], file: Path, live: Live | None = None) -> None:
    """Write atomically: a browser never sees half a page."""
    text = page(runs, datetime.now().astimezone(), live)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"--html {file}: cannot be written: {error.strerror}") from None


def write_images(runs: Sequence[Run], folder: Path, svg: bool) -> list[Path]:
    """A PNG of each chart, or an SVG."""
    charts, _ = charts_of(runs)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            shapes = drawn(chart, runs[0].curves.axis)
            path = folder / f"{file_name(chart)}.{'svg' if svg else 'png'}"
            if svg:
                path.write_text(to_svg(shapes, chart.title), encoding="utf-8")
            else:
                save_png(shapes, path)
            written.append(path)
    except OSError as error:
        raise UserError(f"--png {folder}: cannot be written: {error.strerror}") from None
    return written


def watch(readers: Sequence[Read], file: Path, sleep: Callable[[float], None] = time.sleep) -> list[Run]:
    """Write the page again and again until all runs have finished; returns them."""
    while True:
        start = time.monotonic()
        runs = read_all(readers)
        if all(has_finished(run) for run in runs):
            write_page(runs, file)
            return runs
        seconds = max(WATCH_SECONDS, 10 * (time.monotonic() - start))  # at most a tenth of the time is spent on it
        write_page(runs, file, Live(seconds))
        sleep(seconds)


def has_finished(run: Run) -> bool:
    if run.state:
        return run.state in FINISHED
    done, _, of = run.facts.get("steps", "").partition(" of ")
    return bool(done) and done == of


def write_beside(output: Path) -> Path | None:
    """The page of a finished run in its output folder; None if it cannot be written, because it is an extra."""
    try:
        write_page([read_folder(output)], output / FILE)
    except (UserError, OSError, ValueError):
        return None
    return output / FILE
