"""Liveness, readiness and metrics over plain HTTP, served before leadership is won.

Ready is who leads with what there is read, and who waits while another leads: so a rollout never takes a leader away
for a replica that could not reach the cluster. Alive is who works off its queue and sees what changes. An operator
that has nothing to do sees nothing, and that is no fault: what counts is what full lists find and no watch tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from trainwright_operator.cluster.metrics import Metrics


def application(metrics: Metrics, pulse: Pulse, refresh: Callable[[], None]) -> web.Application:
    """``/healthz`` restarts a process that cannot recover; ``/readyz`` is also true of a standby that only waits.

    They are answered by the loop that does the work: while it is blocked, a probe gets no answer in time.
    ``refresh`` is called before metrics are shown, for those that are counted only then.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(pulse.alive())

    async def readyz(_: web.Request) -> web.Response:
        return _verdict(pulse.ready())

    async def show(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    return app


def _verdict(word: Word) -> web.Response:
    return web.Response(text=f"{'ok' if word.good else 'not ok'}: {word.why}\n", status=200 if word.good else 503)


Scope = TypeVar("Scope", bound=Hashable)

BLIND_SECONDS = 180.0
"""How long a watch may keep to itself what a list has found. kopf opens one that is silent for 70 s anew."""
STUCK_SECONDS = 300.0
"""How long keys may be due while no worker ends one: longer than an API server that does not answer holds one up."""


@dataclass(frozen=True)
class Word:
    """An answer to a probe, and why."""

    good: bool
    why: str


@dataclass
class Pulse:
    """``another`` tells who else leads, ``trouble`` why that is not known, ``still`` what stands still; or nothing."""

    another: Callable[[], str] = lambda: ""
    trouble: Callable[[], str] = lambda: ""
    leads: bool = False
    primed: bool = False
    still: list[Callable[[], str]] = field(default_factory=list)
    without: list[Callable[[], str]] = field(default_factory=list)
    """What it works without, which is no reason to take it out of work."""

    def alive(self) -> Word:
        problems = [why for one in self.still if (why := one())]
        return Word(not problems, "; ".join(problems) or "the loop, the workers and the watches turn")

    def ready(self) -> Word:
        if self.primed:
            return Word(True, "; ".join(["leads", *(why for one in self.without if (why := one()))]))
        if self.leads:
            return Word(False, "leads, and has not read yet what there is")
        leader = self.another()
        if leader:
            return Word(True, f"waits while {leader} leads")
        return Word(False, ": ".join(["not known yet who leads", *filter(None, [self.trouble()])]))


class Watches(Generic[Scope]):
    """Whether the watch of each scope tells what full lists find; ``now`` gives monotonic seconds.

    A watch that has seen everything has seen the newest version that a list holds. Once behind proves nothing:
    the event may be on its way, and what was deleted while the watch was opened anew is never seen.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: dict[Scope, int] = {}
        self._behind: dict[Scope, float] = {}
        self.blind: set[Scope] = set()
        """Those that two lists, so far apart, have found behind."""

    @property
    def doubted(self) -> bool:
        return bool(self._behind)

    def saw(self, scope: Scope, version: int) -> None:
        self._seen[scope] = max(version, self._seen.get(scope, 0))
        self.blind.discard(scope)

    def listed(self, scope: Scope, newest: int) -> None:
        """A list holds objects up to this version."""
        if newest <= self._seen.get(scope, 0):
            self._behind.pop(scope, None)
        elif self._now() - self._behind.setdefault(scope, self._now()) >= BLIND_SECONDS:
            self.blind.add(scope)
