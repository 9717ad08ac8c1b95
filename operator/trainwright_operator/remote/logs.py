"""``trainwright logs``: the logs of the ranks of an attempt, in one stream.

A thread reads the log of each pod, and the main thread prints the lines in order. Restarts are followed: the pods of
the next attempt are added when they start.
"""

from __future__ import annotations

import argparse
import heapq
import queue
import sys
import threading
import time
from collections.abc import Iterator

from trainwright_operator.core.states import failed, finished
from trainwright_operator.remote.cluster import Cluster, Object, RemoteError, Silent, Unreachable
from trainwright_operator.remote.command import DONE, command
from trainwright_operator.remote.jobs import find_job, find_pods
from trainwright_operator.remote.loglines import Line, Source, chosen, lines, merged, printer, sources


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.follow:
        return Follower(cluster, options).run()
    job = find_job(cluster, options.name)
    found = chosen(sources(find_pods(cluster, job)), options)
    for source in found:
        if source.note:
            print(f"{source.pod}: {source.note}", file=sys.stderr)
    show = printer(found, timestamps=options.timestamps, alone=options.rank is not None)
    for line in merged(_logs(cluster, [one for one in found if one.started], options.tail)):
        if options.rank in (None, line.rank):
            print(show(line))
    return DONE


def _logs(cluster: Cluster, started: list[Source], tail: int | None) -> list[Iterator[Line]]:
    """The log of each pod. A log that cannot be read ends with a note; raises if none can be read."""
    left = {source.pod for source in started}

    def readable(source: Source) -> Iterator[Line]:
        try:
            yield from lines(cluster, source, tail=tail)
        except RemoteError as error:
            left.discard(source.pod)
            if not left:
                raise RemoteError(f"{source.pod}: {error}") from None
            print(f"{source.pod}: {error}", file=sys.stderr)

    return [readable(source) for source in started]


POLL_SECONDS = 2.0
HOLD_SECONDS = 0.3
"""How long a line waits for an earlier line of another pod."""
PATIENCE_SECONDS = 30.0
"""How long to retry a log that cannot be read after the end of the job, such as of a lost node."""


class Follower:
    """Follows a job until it has finished, or one attempt if the options select it."""

    def __init__(self, cluster: Cluster, options: argparse.Namespace) -> None:
        self._cluster, self._options = cluster, options
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._held: list[tuple[str, float, Line]] = []
        self._threads: dict[str, threading.Thread] = {}
        self._noted: dict[str, str] = {}
        self._running = True
        self._reached: dict[str, str] = {}
        self._whole: set[str] = set()
        self._failing: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._over = False
        self._attempt = 0

    def run(self) -> int:
        """The exit code: 1 if the job failed."""
        job = find_job(self._cluster, self._options.name)
        while True:
            found = self._sources(job)
            self._look(found or [])
            if self._over and found is not None and not self._reading():
                break
            self._over = finished(job) or (self._pinned and not self._running)
            self._show_for(HOLD_SECONDS if self._over else POLL_SECONDS)
            job = self._again(job)
        self._show_all()
        if not self._attempt:
            chosen([], self._options)  # raises
        return int(failed(job))

    @property
    def _pinned(self) -> bool:
        """Whether the options select one attempt, which may end long before the job."""
        return self._options.attempt is not None or bool(self._options.previous)

    def _sources(self, job: Object) -> list[Source] | None:
        """None if the cluster does not respond."""
        try:
            return sources(find_pods(self._cluster, job))
        except Unreachable as error:
            self._note_once("cluster", f"{error}; retrying")
            return None

    def _again(self, job: Object) -> Object:
        try:
            return find_job(self._cluster, self._options.name)
        except Unreachable as error:
            self._note_once("cluster", f"{error}; retrying")
            return job

    def _look(self, found: list[Source]) -> None:
        """Start reading new pods; print once why others have not started."""
        if not found:
            return
        ours = chosen(found, self._options)
        self._print = printer(ours, timestamps=self._options.timestamps, alone=self._options.rank is not None)
        if ours[0].attempt > self._attempt > 0:
            self._note_once("attempt", f"attempt {ours[0].attempt}")
        self._attempt = ours[0].attempt
        self._running = any(source.running or not source.started for source in ours)
        for source in ours:
            if source.note:
                self._note_once(source.pod, f"{source.pod}: {source.note}")
            if self._to_read(source):
                self._read(source)

    def _read(self, source: Source) -> None:
        thread = threading.Thread(target=self._copy, args=(source,), name=source.pod, daemon=True)
        self._threads[source.pod] = thread
        thread.start()

    def _copy(self, source: Source) -> None:
        """Read one log to its end, starting after the last line read."""
        self._whole.discard(source.pod)
        since = self._reached.get(source.pod, "")
        try:
            for line in lines(self._cluster, source, tail=self._options.tail, follow=True, since=since):
                self._reached[source.pod] = line.time
                self._failing.pop(source.pod, None)
                self._lines.put(line)
            self._whole.add(source.pod)
        except Silent:
            pass
        except Unreachable as error:
            self._fail(source, error)
        except RemoteError as error:
            self._whole.add(source.pod)
            self._note_once(source.pod, f"{source.pod}: {error}")

    def _fail(self, source: Source, error: Unreachable) -> None:
        """Retry later; after the end of the job only for a limited time, because the node may be lost."""
        now = time.monotonic()
        since = self._failing.setdefault(source.pod, now) if self._over else now
        if now - since > PATIENCE_SECONDS:
            self._given_up.add(source.pod)
            self._note_once(source.pod, f"{source.pod}: {error}; the end of its log may be missing")
        else:
            self._note_once(source.pod, f"{source.pod}: {error}; retrying")

    def _to_read(self, source: Source) -> bool:
        """The log was never read, was cut off, or was closed by the server while the pod is running."""
        thread = self._threads.get(source.pod)
        if thread is None:
            return source.started
        unread = source.running or source.pod not in self._whole
        return unread and not thread.is_alive() and source.pod not in self._given_up

    def _reading(self) -> bool:
        return any(thread.is_alive() for thread in self._threads.values())

    def _show_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=min(left, HOLD_SECONDS))
                heapq.heappush(self._held, (line.time, time.monotonic(), line))
            except queue.Empty:
                pass
            self._show(time.monotonic() - HOLD_SECONDS)

    def _show_all(self) -> None:
        while not self._lines.empty():
            line = self._lines.get()
            heapq.heappush(self._held, (line.time, time.monotonic(), line))
        self._show(time.monotonic())

    def _show(self, arrived_until: float) -> None:
        while self._held and self._held[0][1] <= arrived_until:
            line = heapq.heappop(self._held)[2]
            if self._options.rank in (None, line.rank):
                print(self._print(line), flush=True)

    def _note_once(self, about: str, text: str) -> None:
        """Print a note on standard error, without repeating the last one about the same thing."""
        if self._noted.get(about) != text:
            self._noted[about] = text
            print(f"--- {text}", file=sys.stderr, flush=True)
