"""The course of the losses out of the log of rank 0, and the page that shows them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime

import pytest

from builders import make_job
from trainwright_operator.remote.reporting import to_html
from trainwright_operator.remote.summary import curves, sparkline, summarize

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
LOG = [
    "loading the data ...",
    "{'loss': '4.5', 'grad_norm': '2.061', 'learning_rate': '0.001425', 'epoch': '0.1'}",
    "{'loss': 3.0, 'epoch': 0.2}",
    "{'eval_loss': '3.5', 'eval_runtime': '1', 'epoch': '0.2'}",
    "{'loss': '2.5', 'epoch': '0.3'}",
    "{'loss': oops, 'epoch': 0.4}",
    "{'loss': '2.75', 'epoch': '0.3'}",
    "{'train_runtime': '9', 'train_loss': '3.1', 'loss': '3.1', 'epoch': '0.3'}",
]


def test_the_curves_of_a_page_are_the_losses_of_the_log() -> None:
    assert curves(LOG) == {"loss": [(0.1, 4.5), (0.2, 3.0), (0.3, 2.75)], "eval_loss": [(0.2, 3.5)]}


def test_what_a_restart_trains_again_takes_the_place_of_what_was_lost() -> None:
    first = [f"{{'loss': {5 - epoch}, 'epoch': {epoch}}}" for epoch in (1, 2, 3, 4)]
    second = ["{'loss': 2.9, 'epoch': 2}", "{'loss': 1.9, 'epoch': 3}"]
    assert curves([*first, *second]) == {"loss": [(1, 4), (2, 2.9), (3, 1.9)]}


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([1, 2, 3], 40, "▁▅█"),
        ([1, float("nan"), 3, float("inf")], 40, "▁×█×"),
        ([float("nan")] * 2, 40, "××"),
        ([2, 2], 40, "▁▁"),
        ([7], 40, "▁"),
        (list(range(100)), 4, "▁▃▆█"),
    ],
)
def test_a_sparkline_shows_each_value_and_marks_what_is_no_number(values: list[float], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars


def page(**status) -> ET.Element:
    job = make_job("<b>").status(state="Running", display={"state": "Running"}, **status).manifest()
    text = to_html(summarize(job, NOW, curves(LOG))).removeprefix("<!doctype html>")
    return ET.fromstring(text.replace('<meta charset="utf-8">', ""))


def test_the_page_is_whole_and_nothing_breaks_out_of_it() -> None:
    metrics = [{"name": "<script>", "value": "1"}]
    read = page(metrics=metrics)
    assert read.find("body/h1").text == "<b> "
    assert "<script>" in [cell.text for cell in read.iter("td")]
    assert list(read.iter("script")) == []


def test_the_page_draws_each_loss() -> None:
    lines = [line.get("points").split() for line in page().iter("polyline")]
    assert [len(line) for line in lines] == [3, 1]
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights == sorted(heights), "a falling loss falls"


def test_a_job_without_a_log_has_a_page_without_a_chart() -> None:
    assert "<svg" not in to_html(summarize(make_job().manifest(), NOW))


def test_a_run_of_nan_has_a_page_and_says_so() -> None:
    log = ["{'loss': '4.5', 'epoch': '0.1'}", "{'loss': 'nan', 'epoch': '0.2'}", "{'eval_loss': 'nan', 'epoch': '0.2'}"]
    summary = summarize(make_job().status(state="Running", display={"state": "Running"}).manifest(), NOW, curves(log))
    text = to_html(summary)
    assert "4.5 ▁× nan  (1 of 2 are not finite)" in text
    assert 'points="nan' not in text.lower()


def test_the_page_says_how_many_metrics_the_status_left_out():
    read = page(metrics=[{"name": "loss", "value": "1"}], progress={"metricsLeftOut": 12})
    assert "and 12 more, which are not in the status" in [cell.text for cell in read.iter("td")]
