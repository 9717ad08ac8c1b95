"""Liveness, readiness and metrics over plain HTTP, served before leadership is won.

Ready is a leader with a primed cache, or a standby that knows that another replica leads. So a rollout never replaces a
leader by a replica that cannot reach the cluster. Alive is a process that works off its queue and sees changes. An idle
operator without events is alive; only changes that a full list finds and the watch misses are a failure.
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
    """``/healthz`` restarts a process that cannot recover; ``/readyz`` is also true for a standby.

    The event loop of the operator answers them: while it is blocked, probes time out.
    ``refresh`` is called before metrics are rendered, for those that are computed only then.
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
"""How long a watch may miss a change that a list has found. kopf reopens a watch that is silent for 70 s."""
STUCK_SECONDS = 300.0
"""How long keys may be due while no worker finishes: longer than a request to an unresponsive API server."""


@dataclass(frozen=True)
class Word:
    """The answer to a probe, with the reason."""

    good: bool
    why: str


@dataclass
class Pulse:
    """``another`` names another leader, ``trouble`` why it is unknown, ``still`` what is stuck; empty otherwise."""

    another: Callable[[], str] = lambda: ""
    trouble: Callable[[], str] = lambda: ""
    leads: bool = False
    primed: bool = False
    still: list[Callable[[], str]] = field(default_factory=list)
    without: list[Callable[[], str]] = field(default_factory=list)
    """Parts that do not work; the operator is ready without them."""

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
            return Word(True, f"standby: {leader} leads")
        return Word(False, ": ".join(["the leader is not known yet", *filter(None, [self.trouble()])]))


class Watches(Generic[Scope]):
    """Whether the watch of each scope reports what full lists find; ``now`` returns monotonic seconds.

    A complete watch has seen the latest version in a list. Being behind once proves nothing: the event may still
    arrive, and a deletion while the watch was reopened is never seen.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: dict[Scope, int] = {}
        self._behind: dict[Scope, float] = {}
        self.blind: set[Scope] = set()
        """The scopes that were behind at two lists with that interval."""

    @property
    def doubted(self) -> bool:
        return bool(self._behind)

    def saw(self, scope: Scope, version: int) -> None:
        self._seen[scope] = max(version, self._seen.get(scope, 0))
        self.blind.discard(scope)

    def listed(self, scope: Scope, newest: int) -> None:
        """Record that a list has objects up to this version."""
        if newest <= self._seen.get(scope, 0):
            self._behind.pop(scope, None)
        elif self._now() - self._behind.setdefault(scope, self._now()) >= BLIND_SECONDS:
            self.blind.add(scope)
