"""A thread that sends to a tracker, so that a tracker that is slow, hangs or fails never holds up training.

The queue is bounded. A job that fails because the connection is lost is tried again with growing pauses, and keeps its
place; any other failure is tried three times. Each kind of trouble costs one line.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainwright.integrations.failures import is_outage, one_line

LIMIT = 20_000
"""Jobs that may wait; the rows beyond are dropped, and counted."""
JOINED = 50
"""Rows that are sent together, where the tracker can: few, so that the rest after a burst pays for it."""
SHARE = 0.01
"""The share of a processor that the thread takes while training runs: both compete for Python's interpreter lock."""
LONGEST_REST_SECONDS = 2.0
TRIES = 3
LONGEST_PAUSE_SECONDS = 30.0


@dataclass
class Job:
    """``run(rows)``. Jobs of rows with the same ``run`` may be joined; any other job has no rows."""

    run: Callable[[list[Any]], None]
    rows: list[Any]
    joins: bool = False


class Sender:
    """Runs jobs in their order on one daemon thread.

    Args:
        name: Of the tracker, for messages and the thread.
        say: Prints one line.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = self._hurries = False
        self._busy = False
        self._done = 0
        self._stalled_at: int | None = None
        self._said: set[str] = set()
        self.lost = 0
        """Rows that were dropped."""
        self.trouble: str | None = None
        """Why nothing is being sent now."""

    def put(self, job: Job) -> None:
        """Queue a job. Never blocks on the tracker."""
        with self._changed:
            if job.rows and len(self._jobs) >= LIMIT:
                self._drop(len(job.rows), "it is slower than the run, and its queue is full")
                return
            self._jobs.append(job)
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._work, name=f"tracker-{self._name}", daemon=True)
                self._thread.start()
            if not self._busy:
                self._changed.notify_all()

    def wait_for(self, event: threading.Event, seconds: float) -> bool:
        """Wait for what a job sets; sending does not rest meanwhile."""
        self._hurry(True)
        try:
            return event.wait(seconds)
        finally:
            self._hurry(False)

    def drain(self, seconds: float) -> None:
        """Wait until the queue is empty. A job that takes longer is waited for once."""
        if self._thread is None or self.trouble is not None or self._stalled_at == self._done:
            return
        self._hurry(True)
        deadline = time.monotonic() + seconds
        with self._changed:
            while (self._jobs or self._busy) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.01))
            if self._jobs or self._busy:
                self._stalled_at = self._done
        self._hurry(False)

    def stop(self, idle_seconds: float, most_seconds: float) -> None:
        """Send what is queued and end the thread. Gives up after ``idle_seconds`` without progress."""
        if self._thread is None:
            return
        self._hurry(True, stops=True)
        deadline, seen, moved = time.monotonic() + most_seconds, -1, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.02)
            now = time.monotonic()
            if self._done != seen:
                seen, moved = self._done, now
            if now > deadline or now - moved > idle_seconds:
                break
        with self._changed:
            left = sum(len(job.rows) for job in self._jobs)
            self._jobs.clear()
            if self._thread.is_alive():
                reason = self.trouble or f"it does not answer within {idle_seconds:g} s"
                self.lost += left
                self._say(f"{self._name}: the end of the run does not wait for it any longer: {reason}")
            self._thread, self._hurries = None, False
        if self.lost:
            self._say(f"{self._name}: {self.lost} rows of the log were not sent; they are in trainer_state.json")
            self.lost = 0

    def _hurry(self, hurries: bool, stops: bool = False) -> None:
        with self._changed:
            self._hurries, self._stopping = hurries, self._stopping or stops
            self._changed.notify_all()

    def _drop(self, rows: int, why: str) -> None:
        self.lost += rows
        self.say_once(f"some rows of the log are not sent: {why}")

    def say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(f"{self._name}: {line}")

    # The methods below run on the thread.

    def _work(self) -> None:
        me = threading.current_thread()
        while (job := self._next(me)) is not None:
            before = time.thread_time()
            self._run(job, me)
            self._rest(time.thread_time() - before, me)

    def _next(self, me: threading.Thread) -> Job | None:
        """The next job, joined with the following ones where possible; None to end."""
        with self._changed:
            self._busy = False
            while not self._jobs:
                if self._stopping or self._thread is not me:
                    return None
                self._changed.wait()
            self._busy = True
            job = self._jobs.popleft()
            rows = list(job.rows)
            while job.joins and self._jobs and self._jobs[0].run == job.run and len(rows) < JOINED:
                rows += self._jobs.popleft().rows
            return Job(job.run, rows, job.joins)

    def _run(self, job: Job, me: threading.Thread) -> None:
        """Run a job until it succeeds, fails for good, or nobody waits for it any longer."""
        failures, pause = 0, 1.0
        while self._thread is me:
            try:
                job.run(job.rows)
                if self.trouble is not None:
                    self.trouble = None
                    self._said.clear()
                self._done += 1
                return
            except Exception as error:
                why = one_line(error)
                outage = is_outage(error)
                failures += not outage
            if failures >= TRIES or (failures and not job.rows):
                self._give_up(job, why)
                return
            if outage:
                self.trouble = why
                self.say_once(f"it cannot be reached, and training goes on: {why}")
                if self._stopping:
                    self.lost += len(job.rows)
                    return
            self._sleep(pause if outage else 0.2, me, wakes=outage)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _give_up(self, job: Job, why: str) -> None:
        self._done += 1
        if len(job.rows) > 1:  # one of them may be the cause
            with self._changed:
                self._jobs.extendleft(Job(job.run, [row]) for row in reversed(job.rows))
        else:
            self._drop(len(job.rows), why) if job.rows else self.say_once(f"{why}; training goes on")

    def _rest(self, cost: float, me: threading.Thread) -> None:
        if len(self._jobs) < LIMIT // 2:
            self._sleep(min(cost / SHARE, LONGEST_REST_SECONDS), me)

    def _sleep(self, seconds: float, me: threading.Thread, wakes: bool = True) -> None:
        """Sleep, but not while somebody waits for the queue (an outage is then tried once more, at once)."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._thread is me and not (wakes and self._hurries) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
