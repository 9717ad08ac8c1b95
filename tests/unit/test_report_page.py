"""The curves of a run out of its log, and the page and the pictures that show them."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from builders import make_job
from trainwright.contract import UserError
from trainwright_operator import cli
from trainwright_operator.local.output import OutputFolder
from trainwright_operator.remote import reporting
from trainwright_operator.report import charts, images, writing
from trainwright_operator.report.page import Live, differences, page
from trainwright_operator.report.reading import StateReader, rows_of_lines
from trainwright_operator.report.run import Run, read_folder, read_job
from trainwright_operator.report.series import Curves, Series, thinned
from trainwright_operator.report.summary import sparkline

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
LOG = [
    "loading the data ...",
    "{'loss': '4.5', 'grad_norm': '2.061', 'learning_rate': '0.001425', 'epoch': '0.1'}",
    "{'loss': 3.0, 'epoch': 0.2}",
    "[rank 0] {'eval_loss': '3.5', 'eval_runtime': '1', 'epoch': '0.2'}",
    "[rank 1] {'loss': '99', 'epoch': '0.2'}",
    "{'loss': '2.5', 'epoch': '0.3'}",
    "{'loss': oops, 'epoch': 0.4}",
    "{'train_runtime': '9', 'train_loss': '3.1', 'epoch': '0.3'}",
    "{'loss': '1.5', 'epo",
]


def curves(lines: list[str], axis: str = "epoch") -> Curves:
    read = Curves(axis)
    for row in rows_of_lines(lines):
        read.add(row)
    return read


def points(read: Curves) -> dict[str, list[tuple[float, float]]]:
    return {name: series.points() for name, series in read.series.items()}


# Reading


def test_the_curves_are_the_numbers_that_rank_0_logged() -> None:
    read = curves(LOG)
    assert points(read) == {
        "loss": [(0.1, 4.5), (0.2, 3.0), (0.3, 2.5)],
        "grad_norm": [(0.1, 2.061)],
        "learning_rate": [(0.1, 0.001425)],
        "eval_loss": [(0.2, 3.5)],
    }
    assert read.totals == {"train_runtime": 9.0, "train_loss": 3.1}


def test_what_a_restart_trains_again_takes_the_place_of_what_was_lost() -> None:
    first = [f"{{'loss': {5 - epoch}, 'epoch': {epoch}}}" for epoch in (1, 2, 3, 4)]
    second = ["{'loss': 2.9, 'epoch': 2}", "{'loss': 1.9, 'epoch': 3}"]
    assert points(curves([*first, *second])) == {"loss": [(1, 4), (2, 2.9), (3, 1.9)]}


def test_a_long_curve_keeps_its_peaks_and_little_else() -> None:
    series = Series(buckets=50)
    for step in range(100_000):
        series.add(step, 500.0 if step == 4_321 else -7.0 if step == 77_777 else math.sin(step))
    kept = series.points()
    assert len(kept) <= 102
    assert (4_321, 500.0) in kept
    assert (77_777, -7.0) in kept
    assert (kept[0][0], kept[-1][0]) == (0, 99_999)
    assert kept == sorted(kept)
    assert (series.highest, series.lowest) == ((4_321, 500.0), (77_777, -7.0))


def test_a_short_curve_is_kept_whole() -> None:
    whole = [(float(x), float(-x)) for x in range(100)]
    assert thinned(whole, 50) == whole
    assert thinned([(1.0, float(y)) for y in range(200)], 50) == [(1.0, 0.0), (1.0, 199.0)]


STATE = {
    "best_metric": 2.0, "epoch": 2.0, "global_step": 20, "max_steps": 40,
    "log_history": [{"epoch": n / 10, "step": n, "loss": 5 - n / 10} for n in range(1, 21)],
    "logging_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_a_trainers_state_is_read_in_pieces(indent: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwright_operator.report.reading._CHUNK", chunk)
    reader = StateReader(io.StringIO(json.dumps(STATE, indent=indent, sort_keys=True)))
    assert list(reader.rows()) == STATE["log_history"]
    assert reader.fields == {name: value for name, value in STATE.items() if name != "log_history"}
    assert not reader.torn


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_state_that_ends_in_the_middle_gives_the_rows_before(share: float) -> None:
    text = json.dumps(STATE, indent=2)
    reader = StateReader(io.StringIO(text[: int(len(text) * share)]))
    rows = list(reader.rows())
    assert reader.torn
    assert rows == STATE["log_history"][: len(rows)]
    assert share < 0.6 or len(rows) > 5


def saved(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": rows[-1]["step"], "epoch": rows[-1]["step"] / 100, "max_steps": 100, "log_history": rows}
    (folder / "trainer_state.json").write_text(json.dumps(state | fields))
    return folder


def falling(last: int, **more: Any) -> list[dict[str, Any]]:
    return [{"step": n, "epoch": n / 100, "loss": 5 - n / 50, **more} for n in range(10, last + 1, 10)]


def test_a_folder_gives_its_latest_checkpoint_and_what_was_logged_after_it(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint-60", falling(60))
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "run-0-1-0.log").write_text("".join(f"{{'loss': '9', 'epoch': '{n / 100}'}}\n" for n in range(10, 90, 10)))
    (logs / "run-0-2-0.log").write_text("{'loss': '3.6', 'epoch': '0.7'}\n{'loss': '3.4', 'ep")
    (logs / "run-0-2-1.log").write_text("{'loss': '1', 'epoch': '0.8'}\n")
    run = read_folder(tmp_path)
    expected = [(float(n), 5 - n / 50) for n in range(10, 61, 10)]
    assert run.curves.series["loss"].points() == [*expected, (70.0, 3.6)]
    assert run.facts["steps"] == "60 of 100"


def test_arguments_and_versions_come_from_the_files_of_a_run(tmp_path: Path) -> None:
    saved(tmp_path, falling(100))
    (tmp_path / "README.md").write_text(
        "# Model\n### Training hyperparameters\n- learning_rate: 0.1\n### Framework versions\n- Pytorch 2.15.0\n"
    )
    assert read_folder(tmp_path).arguments == {"learning_rate": "0.1"}
    assert read_folder(tmp_path).environment == {"Pytorch": "2.15.0"}
    (tmp_path / "training_args.json").write_text('{"learning_rate": 0.2}')
    assert read_folder(tmp_path).arguments == {"learning_rate": 0.2}


def test_the_throughput_of_a_local_run_is_noted_and_drawn(tmp_path: Path) -> None:
    folder = OutputFolder(saved(tmp_path, falling(40)))
    (tmp_path / "logs").mkdir()
    for step in (10, 10, 20, 30):
        folder._note_at = 0.0
        folder.note_speed({"step": step, "epoch": step / 100, "tokensPerSecond": 100.0 * step})
    folder.note_speed({"step": 40, "epoch": 0.4, "tokensPerSecond": 1.0})
    with (tmp_path / "logs" / "speed.jsonl").open("a") as file:
        file.write('{"step": 35, "tok')
    run = read_folder(tmp_path)
    assert run.curves.series["tokens_per_second"].points() == [(10.0, 1000.0), (20.0, 2000.0), (30.0, 3000.0)]
    assert "Tokens per second" in Parts(page([run], NOW)).texts


def pod(attempt: int, node: str, image: str = "trainer:1") -> dict[str, Any]:
    containers = [{"name": "proxy", "image": "mesh:2"}, {"name": "trainer", "image": image}]
    return {
        "metadata": {"labels": {"trainwright.dev/attempt": str(attempt)}},
        "spec": {"nodeName": node, "containers": containers},
    }


def test_the_environment_of_a_job_in_the_cluster_is_that_of_its_latest_attempt() -> None:
    pods = [pod(1, "lost", "trainer:0"), *(pod(2, f"node-{index}") for index in range(10))]
    device = {"event": "device", "rank": 0, "device": "H100", "memoryBytes": 85_000_000_000, "driver": "570.1"}
    found = reporting.environment_of(pods, device)
    assert found["image"] == "trainer:1"
    assert found["nodes"].startswith("node-0, node-1")
    assert found["nodes"].endswith(" and 2 more")
    assert (found["device"], found["memory"], found["driver"]) == ("H100", "85 GB", "570.1")
    assert reporting.environment_of([], {}) == {}


def test_a_watched_job_in_the_cluster_gets_a_curve_of_its_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("train").manifest()
    monkeypatch.setattr(reporting, "find_job", lambda cluster, name: job)
    monkeypatch.setattr(reporting, "find_pods", lambda cluster, job: [])
    read = reporting._Remote("train", lambda: None)  # type: ignore[arg-type, return-value]
    for step, speed in ((10, 3.0), (20, 5.0), (20, 6.0)):
        job["status"] = {"state": "Running", "progress": {"step": step, "epoch": 0.1, "samplesPerSecond": speed}}
        run = read("step", 360)
    assert run.curves.series["samples_per_second"].points() == [(10, 3.0), (20, 6.0)]


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run: neither trainer_state\.json, nor a checkpoint, nor training"):
        read_folder(tmp_path)


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


# The page


class Parts(HTMLParser):
    """The elements and the texts of a page; fails if elements are not closed in order."""

    VOID = ("meta", "path", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    def of(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.elements
            if (name == tag and kind in (attrs.get("class") or "").split(" ")) or (name == tag and not kind)
        ]


def run_of(lines: list[str], name: str = "<b>run</b>", **status: Any) -> Run:
    job = make_job(name).status(state="Running", display={"state": "Running"}, **status).manifest()
    return read_job(job, rows_of_lines(lines), NOW, "epoch", 100)


def test_the_page_is_whole_and_nothing_breaks_out_of_it() -> None:
    metrics = [{"name": "<script>alert(1)</script>", "value": "1"}]
    text = page([run_of([*LOG, "{'eval_</script><i>': '1', 'epoch': '0.4'}"], metrics=metrics)], NOW)
    parts = Parts(text)
    assert "<b>run</b> " in parts.texts
    assert "<script>alert(1)</script>" in parts.texts
    assert [attrs.get("type") for attrs in parts.of("script")] == ["application/json", None]
    assert parts.of("i", "") == [{}] * len(parts.of("figure")), "those of the axes"


def test_the_page_loads_nothing() -> None:
    text = page([run_of(LOG)], NOW)
    assert "default-src 'none'" in text
    assert not re.findall(
        r"(?:src|href|url\(|@import|https?:)",
        text.replace("default-src", "").replace("style-src", "").replace("script-src", ""),
    )


def test_each_metric_has_a_chart_with_a_name_a_sentence_a_slider_and_a_table() -> None:
    parts = Parts(page([run_of(LOG)], NOW))
    figures, sliders = parts.of("figure"), parts.of("div", "area")
    assert len(figures) == len(sliders) == 3
    ids = {attrs["id"] for _, attrs in parts.elements if "id" in attrs}
    for figure, slider in zip(figures, sliders, strict=True):
        assert figure["aria-labelledby"] in ids
        assert slider["aria-describedby"] in ids
        assert (slider["role"], slider["tabindex"]) == ("slider", "0")
    said = " ".join(parts.texts)
    assert "training: from 4.5 to 2.5 at epoch 0.3; lowest 2.5 at 0.3, highest 4.5 at 0.1." in said
    assert len(parts.of("caption")) >= 3


def lines_of(text: str) -> list[list[tuple[float, float]]]:
    drawn = re.findall(r'<path class="line"[^>]*? d="([^"]+)"', text)
    return [[(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", one)] for one in drawn]


def test_a_falling_loss_falls_on_the_page() -> None:
    training = max(lines_of(page([run_of(LOG)], NOW)), key=len)
    assert [x for x, _ in training] == sorted(x for x, _ in training)
    assert [y for _, y in training] == sorted(y for _, y in training)


def test_a_run_without_a_log_has_a_page_without_a_chart() -> None:
    text = page([run_of([])], NOW)
    assert "No metrics were logged yet." in Parts(text).texts
    assert "<figure" not in text


def test_values_that_are_no_numbers_are_marked_and_interrupt_the_line() -> None:
    log = [f"{{'loss': '{value}', 'epoch': '{n}'}}" for n, value in enumerate(["4.5", "4", "nan", "3", "inf", "2"], 1)]
    text = page([run_of(log)], NOW)
    parts = Parts(text)
    assert len(parts.of("span", "lost")) == 2
    (drawn,) = re.findall(r'<path class="line"[^>]*? d="([^"]+)"', text.partition("<figure")[2].partition("</svg>")[2])[
        :1
    ] or [""]
    assert "nan" not in drawn.lower()
    assert text.count("M", text.index('class="line"')) >= 3
    assert "2 of 6 values are not finite." in " ".join(parts.texts)
    assert any("NaN or infinity" in one for one in parts.texts)
    assert "NaN" in parts.texts


def test_a_run_of_nan_has_a_page() -> None:
    text = page([run_of(["{'loss': 'nan', 'epoch': '0.1'}", "{'loss': 'nan', 'epoch': '0.2'}"])], NOW)
    assert "no finite value. 2 of 2 values are not finite." in " ".join(Parts(text).texts)


ATTEMPTS = [
    {"attempt": 1, "startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T00:10:00Z", "outcome": "Failed",
     "reason": "Error", "message": "<oops>", "step": 40},
    {"attempt": 2, "startTime": "2026-01-01T00:20:00Z", "endTime": "2026-01-01T00:50:00Z", "outcome": "Succeeded",
     "step": 100},
]  # fmt: skip


def test_restarts_are_marked_in_the_charts_and_the_time_between_them_is_shown(tmp_path: Path) -> None:
    job = make_job("run").status(state="Succeeded", display={"state": "Succeeded"}, attempts=ATTEMPTS).manifest()
    run = read_job(job, falling(100, grad_norm=1.0), NOW, "step", 100)
    text = page([run], NOW)
    parts = Parts(text)
    assert parts.texts.count("attempt 2") == 2
    assert len(parts.of("path", "attempt")) == 2
    assert [attrs["style"] for attrs in parts.of("span", "mark")] == ["left:40.00%"] * 2
    assert "80% of the time in attempts (40m00s), 10m00s between them." in parts.texts
    assert any("<oops>" in one for one in parts.texts)


def test_several_runs_are_overlaid_and_their_differences_are_listed(tmp_path: Path) -> None:
    for name, rate in (("base", 0.1), ("high", 0.2), ("low", 0.05)):
        folder = saved(tmp_path / name, falling(100, eval_loss=1.0))
        (folder / "training_args.json").write_text(json.dumps({"learning_rate": rate, "seed": 1, "output_dir": name}))
    runs = writing.read_all([lambda axis, buckets, name=name: read_folder(tmp_path / name, axis, buckets)
                             for name in ("base", "high", "low")])  # fmt: skip
    assert differences(runs) == [("learning_rate", "0.1", "0.2", "0.05")]
    parts = Parts(page(runs, NOW))
    assert "3 runs compared" in parts.texts
    assert len(parts.of("figure")) == 2, "a single run has one chart for both losses"
    lines = parts.of("path", "line")
    styles = {(line["stroke"], line.get("stroke-dasharray")) for line in lines}
    assert len(styles) == 3, "colour and dashes tell the runs apart"
    assert len({dash for _, dash in styles}) == 3, "the dashes alone do as well"


def test_runs_are_drawn_by_epoch_if_the_steps_of_one_are_unknown(tmp_path: Path) -> None:
    saved(tmp_path / "a", falling(100))
    log = tmp_path / "b" / "logs" / "b-0-1-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("\n".join(LOG))
    runs = writing.read_all([lambda axis, buckets, name=name: read_folder(tmp_path / name, axis, buckets)
                             for name in "ab"])  # fmt: skip
    assert [run.curves.axis for run in runs] == ["epoch", "epoch"]
    assert runs[0].curves.series["loss"].points()[-1] == (1.0, 3.0)


def test_a_live_page_can_be_paused_and_another_has_no_button_for_it() -> None:
    assert 'id="pause" data-seconds="5"' in page([run_of(LOG)], NOW, Live(5))
    assert 'id="pause"' not in page([run_of(LOG)], NOW)


def test_a_watched_page_is_written_until_the_run_has_finished(tmp_path: Path) -> None:
    written, steps = [], iter([20, 60, 100])

    def read(axis: str, buckets: int) -> Run:
        return read_folder(saved(tmp_path / "run", falling(next(steps))), axis, buckets)

    def sleep(seconds: float) -> None:
        written.append((seconds, (tmp_path / "out.html").read_text()))

    writing.watch([read], tmp_path / "out.html", sleep)
    assert [seconds >= writing.WATCH_SECONDS and 'id="pause"' in text for seconds, text in written] == [True, True]
    assert 'id="pause"' not in (tmp_path / "out.html").read_text()


# Scales


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.606, 5.166), (-3, 7e6), (0.00015, 0.0029), (40, 46.2), (5, 5)])
def test_ticks_are_round_and_enclose_the_values(low: float, high: float) -> None:
    ticks = charts._ticks(*charts._wide(low, high))
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 3 <= len(ticks) <= 9
    assert all(len(charts.number(tick).lstrip("-")) <= 7 for tick in ticks)


def test_values_of_very_different_sizes_get_a_logarithmic_scale() -> None:
    rows = [{"step": n, "epoch": n, "grad_norm": 10.0 ** (n % 5 - 2), "learning_rate": 10.0**-n} for n in range(1, 9)]
    run = read_job(make_job("run").manifest(), rows, NOW, "step", 100)
    by_key = {chart.key: chart for chart in charts.charts_of([run])[0]}
    assert by_key["grad_norm"].y.log
    assert by_key["grad_norm"].y_ticks == (0.01, 0.1, 1.0, 10.0, 100.0)
    assert not by_key["learning_rate"].y.log, "it is read by its shape, and may be 0"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.6061, "1.606"), (3e-5, "3e-05"), (200_000, "200k"), (181_532.1, "181.5k"), (2.5e6, "2.5M"), (math.nan, "NaN"),
     (-math.inf, "-infinity"), (1000, "1000"), (0, "0")],
)  # fmt: skip
def test_numbers_are_short(value: float, shown: str) -> None:
    assert charts.number(value) == shown


# Pictures


def test_each_chart_is_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    run = run_of(LOG, name="a <run>")
    pictures = writing.write_images([run], tmp_path, svg=False)
    assert [path.name for path in pictures] == ["loss.png", "learning-rate.png", "grad-norm.png"]
    with Image.open(pictures[0]) as image:
        assert image.size == (images.WIDTH, images.HEIGHT)
        assert len(image.getcolors(1 << 20) or ()) > 20
    drawn = writing.write_images([run], tmp_path, svg=True)
    root = ET.fromstring(drawn[0].read_text())
    assert len(root.findall("{*}polyline")) > 5
    assert "training" in [one.text for one in root.findall("{*}text")]


def test_a_dashed_line_keeps_its_pattern_across_its_points() -> None:
    line = [(float(x), 0.0) for x in range(11)]
    parts = [(round(part[0][0], 6), round(part[-1][0], 6)) for part in images.dashed(line, (3.0, 2.0))]
    assert parts == [(0.0, 3.0), (5.0, 8.0), (10.0, 10.0)] or parts == [(0.0, 3.0), (5.0, 8.0)]


# The command


def test_a_folder_is_reported_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = saved(tmp_path / "run", falling(100)), tmp_path / "pages" / "run.html"
    assert cli.main(["report", str(run), "--html", str(out), "--png", str(tmp_path / "pictures"), "--svg"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out), str(tmp_path / "pictures" / "loss.svg")]
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["run.html"]


REFUSED = {
    "no folder": (["no/such"], "error: no/such: there is no such folder"),
    "watch without a page": (["{run}", "--watch"], "error: --watch: it updates a page; add --html FILE"),
    "svg without a folder": (["{run}", "--svg"], "error: --svg: it is written into the folder of --png"),
    "two summaries": (["{run}", "{run}"], "error: several runs are compared on a page; add --html FILE"),
    "no job": (["{run}"], "is not the output of a TrainingJob; add --html FILE or --png FOLDER"),
    "an empty folder": (["{empty}", "--html", "x.html"], "holds no run"),
    "a page that is a folder": (["{run}", "--html", "{empty}"], "cannot be written: Is a directory"),
    "format and page": (["{run}", "--html", "x", "--format", "md"], "error: --format: it prints a summary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_report_that_cannot_be_written_says_why(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = REFUSED[case]
    places = {"run": saved(tmp_path / "run", falling(100)), "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    assert cli.main(["report", *(one.format(**places) for one in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
