"""Progress where people wait outside of steps: downloads, reading and tokenizing data, saving large checkpoints.

In a terminal the libraries show their bars. A log gets a line every few seconds instead, and the status of the job the
same as ``progress.activity``. Nothing is shown of what takes less than :data:`LINE_SECONDS`.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainwright.contract import UserError, activity_on_wire
from trainwright.launch.push import Endpoint, Poster, Publisher

LINE_SECONDS = 5.0
_BARS = ("datasets.utils.tqdm", "huggingface_hub.utils.tqdm")
"""The modules whose class ``tqdm`` makes all bars of a library."""

_now: list[str] = []
"""What this process is doing; the latest is what is shown."""
_publisher: Publisher | None = None
_handed_over = False


def activity() -> str | None:
    """What this process is doing besides steps, such as ``tokenizing 34%``; None if nothing takes long."""
    return _now[-1] if _now else None


class Wait:
    """One thing that may take long. ``form`` writes an amount; ``total`` is None if it is unknown."""

    def __init__(
        self,
        what: str,
        total: float | None = None,
        form: Callable[[float], str] = lambda amount: f"{amount:,.0f}",
        line: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self.total, self._form, self._clock = what, total, form, clock
        self._line = line if line is not None else _line
        self._next = clock() + LINE_SECONDS
        self._told = ""

    def update(self, done: float) -> None:
        """Show how much is done, at most every :data:`LINE_SECONDS`."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + LINE_SECONDS
        share = f" {min(100, int(100 * done / self.total))}%" if self.total else ""
        of = f" of {self._form(self.total)}" if self.total else ""
        self._line(f"{self._what}:{share} ({self._form(done)}{of})")
        self._tell(f"{self._what}{share}")

    def close(self) -> None:
        if self._told:
            self._tell("")

    def _tell(self, text: str) -> None:
        with suppress(ValueError):
            _now.remove(self._told)
        self._told = text
        if text:
            _now.append(text)
        _publish()


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Reports, until the Trainer's reporter takes over


def _publish() -> None:
    """Report the activity of rank 0 to the operator soon; never blocks."""
    global _publisher
    if _handed_over or os.environ.get("RANK", "0") != "0":
        return
    if _publisher is None:
        with suppress(UserError):
            endpoint = Endpoint.from_environment()
            if endpoint is not None:
                _publisher = Publisher(_document, Poster(endpoint).post, lambda problem: None, interval=3600.0)
    if _publisher is not None:
        _publisher.publish_soon()


def _document(urgent: bool) -> dict[str, Any] | None:
    return activity_on_wire(activity() or "") if urgent else None


def hand_over() -> None:
    """Leave the reports to the Trainer's reporter, which reads :func:`activity`."""
    global _publisher, _handed_over
    _handed_over = True
    if _publisher is not None:
        _publisher.close(0.0)
        _publisher = None


# Bars of libraries


def follow_bars(in_terminal: bool) -> None:
    """Follow the bars of datasets and huggingface_hub, and write lines instead of them if this is no terminal."""
    for name in _BARS:
        with suppress(ImportError, AttributeError):
            follow(_bar_class(name), in_terminal)
    if not in_terminal:
        _silence_transformers()


def _silence_transformers() -> None:
    """Switch off the bars of transformers, which are those of quick things, and with them not those of the hub."""
    with suppress(ImportError):
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils import logging

        was_disabled = are_progress_bars_disabled()
        logging.disable_progress_bar()
        if not was_disabled:
            enable_progress_bars()


def _bar_class(name: str) -> Any:
    module: Any = importlib.import_module(name)
    return module if isinstance(module, type) else module.tqdm


def follow(bar: Any, in_terminal: bool) -> None:
    """Follow all bars of a class derived from ``tqdm``."""
    begin, display, close = bar.__init__, bar.display, bar.close

    def __init__(self: Any, *args: Any, **options: Any) -> None:  # noqa: N807
        if not in_terminal:
            options["file"] = _Nowhere()
        begin(self, *args, **options)
        if not self.disable:
            is_bytes = self.unit == "B"
            what = f"downloading {self.desc}" if is_bytes else self.desc or "preparing"
            line = (lambda text: None) if in_terminal else None
            self.wait = Wait(what.rstrip(": "), self.total, size if is_bytes else lambda n: f"{n:,.0f}", line)

    def shown(self: Any, *args: Any, **options: Any) -> Any:
        if (wait := getattr(self, "wait", None)) is not None:
            wait.total = self.total
            wait.update(self.n)
        return display(self, *args, **options)

    def closed(self: Any) -> None:
        close(self)
        if (wait := getattr(self, "wait", None)) is not None:
            wait.close()

    bar.__init__, bar.display, bar.close = __init__, shown, closed


class _Nowhere:
    """A file for a bar that is not drawn."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


# Files that grow


@contextmanager
def growing(what: str, written: Callable[[], int], expected: Callable[[], int | None]) -> Iterator[None]:
    """Show how many bytes are written while the body runs; both functions are called only if it takes long."""
    ended = threading.Event()

    def look() -> None:
        if ended.wait(LINE_SECONDS):
            return
        wait = Wait(what, expected(), size)
        while True:
            with suppress(OSError):
                wait.update(written())
            if ended.wait(1.0):
                break
        wait.close()

    thread = threading.Thread(target=look, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def bytes_below(folders: list[Path]) -> int:
    """The size of all files in the folders; files that vanish meanwhile are left out."""
    total = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    total += os.stat(os.path.join(place, name)).st_size
    return total


def size(amount: float) -> str:
    """``12.4 GB``, in powers of 1000, as disks and downloads are measured."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:.3g} {unit}"
    return f"{amount:.0f} B"
