"""Shows jobs for ``watch``: a live table in a terminal, one line for each change in a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from trainwright_operator.api.names import Condition
from trainwright_operator.core import display
from trainwright_operator.core.events import Event, events
from trainwright_operator.core.policy import Phase
from trainwright_operator.core.states import UNSEEN, condition, status_of
from trainwright_operator.local.live import BAR, COLUMNS, SPARE, Lines
from trainwright_operator.remote.feed import Key
from trainwright_operator.terminal import Columns, takes_lines_back

Object = Mapping[str, Any]
STYLES = {
    Phase.RUNNING.value: "cyan",
    Phase.SUCCEEDED.value: "green",
    Phase.FAILED.value: "red",
    Phase.RESTARTING.value: "yellow",
    "Queued": "yellow",
}
WIDE = {"NODES": "nodes", "SLOWEST": "slowest", "GOODPUT": "goodput", "COST": "cost"}
"""Further columns, as of ``kubectl get -o wide``."""
TROUBLE = (Condition.FAILED, Condition.STALLED, Condition.QUEUED, Condition.RESTARTING)


class Board(Protocol):
    def update(self, key: Key, before: Object | None, job: Object) -> None:
        """Show the current state of a job; ``before`` is its last state, None for a new job."""

    def gone(self, key: Key) -> None: ...

    def say(self, message: str) -> None:
        """Show a message about the connection."""

    def close(self) -> None: ...


def board(console: Console, *, namespaced: bool, wide: bool = False) -> Board:
    """``namespaced`` shows the namespace beside the name. A dumb terminal cannot overwrite lines."""
    return LiveTable(console, namespaced, wide) if takes_lines_back(console) else PlainLines(console, namespaced)


def label(key: Key, namespaced: bool) -> str:
    return "/".join(key) if namespaced else key[1]


def news(before: Object | None, job: Object) -> tuple[Event, ...]:
    """The events since ``before``; none when the job is seen for the first time."""
    return events(status_of(before), status_of(job)) if before else ()


class PlainLines:
    """The lines of a local run, each with the name of its job."""

    def __init__(self, console: Console, namespaced: bool) -> None:
        self._console, self._namespaced = console, namespaced
        self._jobs: dict[Key, Lines] = {}

    def update(self, key: Key, before: Object | None, job: Object) -> None:
        lines = self._jobs.setdefault(key, Lines(label(key, self._namespaced), self._console))
        lines.show(status_of(job), news(before, job))

    def gone(self, key: Key) -> None:
        self.say(f"{label(key, self._namespaced)}: deleted")

    def say(self, message: str) -> None:
        self._console.print(f"{datetime.now():%H:%M:%S} {message}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to clean up."""


class LiveTable:
    """The columns of ``kubectl get trainingjobs`` and a bar, with events above and problems below."""

    def __init__(self, console: Console, namespaced: bool, wide: bool = False) -> None:
        self._console, self._namespaced, self._wide = console, namespaced, wide
        self._jobs: dict[Key, Object] = {}
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)
        self._live.start()

    def update(self, key: Key, before: Object | None, job: Object) -> None:
        self._jobs = dict(sorted({**self._jobs, key: job}.items()))
        for event in news(before, job):
            style = "yellow" if event.type == "Warning" else "dim"
            text = f"{datetime.now():%H:%M:%S} {label(key, self._namespaced)}: {event.message}"
            self._console.print(Text(text, style=style))

    def gone(self, key: Key) -> None:
        self._jobs = {other: job for other, job in self._jobs.items() if other != key}
        self.say(f"{label(key, self._namespaced)}: deleted")

    def say(self, message: str) -> None:
        self._console.print(Text(f"{datetime.now():%H:%M:%S} {message}", style="yellow"))

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        return render(self._jobs, datetime.now().astimezone(), self._namespaced, self._wide)


def render(jobs: Mapping[Key, Object], now: datetime, namespaced: bool, wide: bool = False) -> RenderableType:
    columns = {**COLUMNS, **WIDE} if wide else COLUMNS
    headings = (*(["NAMESPACE"] if namespaced else []), "NAME", *columns, BAR)
    rows = [
        [*map(Text, key if namespaced else key[1:]), *_cells(status_of(job), now, columns)] for key, job in jobs.items()
    ]
    return Group(Columns(headings, rows, spare=SPARE), *_problems(jobs, namespaced))


def _cells(status: Mapping[str, Any], now: datetime, columns: Mapping[str, str]) -> list[RenderableType]:
    progress = status.get("progress") or {}
    shown = dict(status["display"])
    if status["state"] == Phase.RUNNING:
        shown |= display.ending(progress, now)
    style = STYLES.get(status["state"], "")
    texts = [Text(shown.get(field, ""), style=style if field == "state" else "") for field in columns.values()]
    return [*texts, ProgressBar(total=100, completed=progress.get("percent", 0), width=20)]


def _problems(jobs: Mapping[Key, Object], namespaced: bool) -> list[Text]:
    found = []
    for key, job in jobs.items():
        holding = next((one for kind in TROUBLE if (one := condition(job, kind))), None)
        if holding:
            found.append(Text(f"{label(key, namespaced)}: {holding['message']}", style="yellow"))
        elif status_of(job) is UNSEEN:
            found.append(Text(f"{label(key, namespaced)}: no operator has reconciled it yet", style="dim"))
    return found
