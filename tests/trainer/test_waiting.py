"""What is shown while people wait: lines in a log, bars in a terminal, and the activity in the status."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tqdm.std import tqdm

from trainer import tiny
from trainer.runs import make
from trainwright.contract import ENV_PROGRESS_URL
from trainwright.integrations import waiting
from trainwright.integrations.waiting import Wait, activity, follow, growing, size


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv(ENV_PROGRESS_URL, raising=False)
    yield
    assert activity() is None
    waiting.hand_over()
    waiting._handed_over = False


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_every_few_seconds_and_not_for_what_is_quick() -> None:
    clock, lines = Clock(), []
    wait = Wait("tokenizing", 10_000, line=lines.append, clock=clock)
    for second in range(13):
        clock.now = float(second)
        wait.update(second * 700)
    assert lines == ["tokenizing: 35% (3,500 of 10,000)", "tokenizing: 70% (7,000 of 10,000)"]
    assert activity() == "tokenizing 70%"
    wait.close()
    assert activity() is None


def test_the_newest_of_several_is_the_activity() -> None:
    clock = Clock()
    outer, inner = (Wait(name, None, size, lambda text: None, clock) for name in ("reading", "downloading x"))
    clock.now = 6.0
    outer.update(1)
    inner.update(2)
    assert activity() == "downloading x"
    inner.close()
    assert activity() == "reading"
    outer.close()


class Bar(tqdm):
    """A class of its own, as each library has one."""


def followed(in_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[type, list[str]]:
    kind, lines = type("Followed", (Bar,), {}), []
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "_line", lines.append)
    follow(kind, in_terminal)
    return kind, lines


def test_bars_become_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kind, lines = followed(False, monkeypatch)
    with kind(total=4, desc="tokenizing spec.dataset.source", mininterval=0) as bar:
        for _ in range(4):
            bar.update(1)
        assert activity() == "tokenizing spec.dataset.source 100%"
    with kind(total=2e9, desc="model.safetensors", unit="B", mininterval=0) as bar:
        bar.update(5e8)
    assert "tokenizing spec.dataset.source: 50% (2 of 4)" in lines
    assert "downloading model.safetensors: 25% (500 MB of 2 GB)" in lines
    captured = capsys.readouterr()
    assert captured.out + captured.err == "", "no bar, and no empty line in its place"


def test_bars_stay_bars_in_a_terminal_and_are_an_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, lines = followed(True, monkeypatch)
    drawn = io.StringIO()
    with kind(total=4, desc="Map", mininterval=0, file=drawn) as bar:
        bar.update(1)
        assert activity() == "Map 25%"
    assert "Map:  25%|" in drawn.getvalue()
    assert lines == []


def test_a_bar_that_is_switched_off_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, lines = followed(False, monkeypatch)
    with kind(total=4, desc="Map", disable=True) as bar:
        bar.update(4)
    assert lines == []


def test_the_libraries_have_the_bars_that_are_followed() -> None:
    for name in waiting._BARS:
        found = waiting._bar_class(name)
        assert issubclass(found, tqdm)
        assert found is not tqdm


LIBRARIES = """
from trainwright.integrations.waiting import follow_bars
follow_bars(in_terminal=False)
import datasets
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging
list(logging.tqdm([1, 2], desc="Writing model shards"))
datasets.Dataset.from_dict({"x": [1, 2]}).map(lambda row: row)
print(are_progress_bars_disabled(), datasets.utils.are_progress_bars_disabled())
"""


def test_no_bar_of_a_library_reaches_a_log() -> None:
    ended = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, timeout=120)
    assert ended.stderr == ""
    assert ended.stdout == "False False\n", "they are followed, and not switched off"


def test_a_checkpoint_that_takes_long_is_shown_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.05)
    trainer = make(tmp_path, tiny.classifier(), save_strategy="steps", save_steps=2, max_steps=4)
    write, seen = trainer.checkpoints.write, []

    def slow(step: int, pieces: Any, begun: Any = None) -> Path:
        part = tmp_path / f".checkpoint-{step}.part-0"
        part.mkdir()
        (part / "model.safetensors").write_bytes(b"x" * 5000)
        ends = time.monotonic() + 30
        while not (now := activity()) and time.monotonic() < ends:
            time.sleep(0.01)
        seen.append(now)
        (part / "model.safetensors").unlink()
        part.rmdir()
        return write(step, pieces, begun)

    trainer.checkpoints.write = slow
    trainer.train()
    assert seen[0] == "saving checkpoint-2", "nothing says yet how large it gets"
    assert seen[1] is not None
    assert seen[1].startswith("saving checkpoint-4 ")
    assert seen[1].endswith("%")
    assert "saving checkpoint-2: (5 kB)" in capfd.readouterr().err


def test_a_quick_checkpoint_is_not_looked_at() -> None:
    def never() -> int:
        raise AssertionError

    with growing("saving", never, never):
        pass
    assert activity() is None


@pytest.mark.parametrize(("amount", "shown"), [(0, "0 B"), (999, "999 B"), (12.4e9, "12.4 GB"), (5e12, "5 TB")])
def test_sizes_are_short(amount: float, shown: str) -> None:
    assert size(amount) == shown
