"""Shows a run: a live table in a terminal, one line for each change in a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from trainwright_operator.core import display
from trainwright_operator.core.events import Event
from trainwright_operator.core.policy import Phase
from trainwright_operator.terminal import Columns, takes_lines_back

Status = Mapping[str, Any]

QUIET_SECONDS = 10.0
"""In a pipe, the minimum time between two lines that differ only in the step."""
COLUMNS = {
    "STATE": "state",
    "STEP": "step",
    "LOSS": "loss",
    "EVAL": "eval",
    "TOK/S": "tokensPerSecond",
    "ENDS": "ends",
    "RESTARTS": "restarts",
}
BAR = ""
"""The heading of the bar."""
SPARE = (BAR, "TOK/S", "EVAL", "ENDS", "LOSS", "RESTARTS")
"""What a narrow terminal can do without, the least important first."""
_STYLES = {Phase.RUNNING: "cyan", Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.RESTARTING: "yellow"}


class Screen(Protocol):
    def show(self, status: Status, events: tuple[Event, ...]) -> None: ...

    def close(self) -> None: ...


def screen(name: str, console: Console) -> Screen:
    return Table_(name, console) if takes_lines_back(console) else Lines(name, console)


class Lines:
    """Plain lines: every event, every change of state or evaluation, and the step at intervals."""

    def __init__(self, name: str, console: Console) -> None:
        self._name, self._console = name, console
        self._shown: dict[str, str] = {}
        self._at = -QUIET_SECONDS

    def show(self, status: Status, events: tuple[Event, ...]) -> None:
        for event in events:
            if event.reason != status["state"]:
                self._print(event.message)
        shown = dict(status["display"])
        news = any(shown.get(key) != self._shown.get(key) for key in ("state", "eval"))
        later = time.monotonic() >= self._at + QUIET_SECONDS
        if news or (later and shown.get("step") != self._shown.get("step")):
            self._print(sentence(shown))
            self._shown, self._at = shown, time.monotonic()

    def close(self) -> None:
        """Nothing to clean up."""

    def _print(self, text: str) -> None:
        line = f"{datetime.now():%H:%M:%S} {self._name}: {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def sentence(shown: Mapping[str, str]) -> str:
    """``Running, step 140/200, loss 2.113, eval 2.29, 18.4k tokens/s, ends 10:42 (in ~21s)``."""
    parts = {"step": "step {}", "loss": "loss {}", "eval": "eval {}", "tokensPerSecond": "{} tokens/s"}
    if shown["state"] == Phase.RUNNING:
        parts["ends"] = "ends {}"
    if not shown.get("step", "0")[0].isdigit():  # what is done before the first step
        parts["step"] = "{}"
    return ", ".join([shown["state"], *(form.format(shown[key]) for key, form in parts.items() if shown.get(key))])


class Table_:  # noqa: N801 - the name Table is rich's
    """The columns of ``kubectl get trainingjobs``, a bar, and above them the events as they come."""

    def __init__(self, name: str, console: Console) -> None:
        self._name, self._console = name, console
        self._status: Status = {"state": Phase.STARTING.value, "display": {"state": Phase.STARTING.value}}
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=False)
        self._live.start()

    def show(self, status: Status, events: tuple[Event, ...]) -> None:
        self._status = status
        for event in events:
            style = "yellow" if event.type == "Warning" else "dim"
            self._console.print(Text(f"{datetime.now():%H:%M:%S} {event.message}", style=style))

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        status = self._status
        progress = status.get("progress") or {}
        shown = {**status["display"], **display.ending(progress, datetime.now().astimezone())}
        style = _STYLES.get(Phase(status["state"]) if status["state"] in set(Phase) else Phase.STARTING, "")
        cells = [Text(shown.get(key, ""), style=style if key == "state" else "") for key in COLUMNS.values()]
        table = Columns(("NAME", *COLUMNS), [[Text(self._name), *cells]], spare=SPARE)
        return Group(table, ProgressBar(total=100, completed=progress.get("percent", 0), width=60))
