"""Merges the log lines of several pods by time, and marks each with its rank.

The kubelet adds a timestamp to every line. If the clocks of two nodes differ by a second, so does the order of their
lines; the order within a pod is always kept.
"""

from __future__ import annotations

import argparse
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainwright.contract import ENV_FIRST_NODE_RANK
from trainwright_operator.api import names
from trainwright_operator.core.observe import COMPLETION_INDEX, native_sidecars
from trainwright_operator.remote.cluster import Cluster, RemoteError
from trainwright_operator.remote.jobs import core_path

_RANK = re.compile(r"^\[rank (\d+)\] ?")


@dataclass(frozen=True)
class Source:
    """The log of a pod, which has the ranks ``first`` to ``first + ranks - 1`` of an attempt.

    ``container`` is the trainer, or an init container that failed or is running.
    """

    pod: str
    attempt: int
    first: int
    ranks: int
    started: bool = True
    running: bool = False
    waiting: str = ""
    container: str = names.CONTAINER

    @property
    def note(self) -> str:
        """A note about the log, such as that it is of an init container."""
        if self.container == names.CONTAINER:
            return "" if self.started else f"no log yet: {self.waiting}"
        what = "is running" if self.running else "failed, so the trainer never ran"
        return f"init container {self.container} {what}; this is its log"

    def has(self, rank: int) -> bool:
        return self.first <= rank < self.first + self.ranks


@dataclass(frozen=True, order=True)
class Line:
    """``rank`` is None for lines of the launcher of several ranks."""

    time: str
    source: str
    rank: int | None
    text: str


def sources(pods: Iterable[Mapping[str, Any]]) -> list[Source]:
    """The pods by attempt and rank, without pods that have no attempt label."""
    found = [_source(pod) for pod in pods if _label(pod, names.LABEL_ATTEMPT)]
    return sorted(found, key=lambda one: (one.attempt, one.first))


def _source(pod: Mapping[str, Any]) -> Source:
    container = next(one for one in pod["spec"]["containers"] if one["name"] == names.CONTAINER)
    env = {one["name"]: one.get("value") for one in container.get("env") or ()}
    per_node, first = int(env.get("PET_NPROC_PER_NODE") or 1), int(env.get(ENV_FIRST_NODE_RANK) or 0)
    node = first + int((pod["metadata"].get("annotations") or {}).get(COMPLETION_INDEX) or 0)
    state, name = decisive_container(pod)
    return Source(
        pod=pod["metadata"]["name"],
        attempt=int(_label(pod, names.LABEL_ATTEMPT)),
        first=node * per_node,
        ranks=per_node,
        started="running" in state or "terminated" in state,
        running="running" in state,
        waiting=(state.get("waiting") or {}).get("reason") or "Pending",
        container=name,
    )


def _label(pod: Mapping[str, Any], name: str) -> str:
    return str((pod["metadata"].get("labels") or {}).get(name) or "")


def decisive_container(pod: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """State and name of the trainer, or of an init container that is running or has failed."""
    status, name = pod.get("status") or {}, names.CONTAINER
    state = next((one.get("state") or {} for one in status.get("containerStatuses") or () if one["name"] == name), {})
    if state.keys() & {"running", "terminated"}:
        return state, name
    native = native_sidecars(pod["spec"])
    for one in status.get("initContainerStatuses") or ():
        before = one.get("state") or {}
        if one["name"] not in native and (before.get("terminated", {}).get("exitCode") or "running" in before):
            return before, one["name"]
    return state, name


def read(source: Source, text: str) -> Line:
    """Parses a line of a log with ``timestamps=true``."""
    time, _, message = text.partition(" ")
    if source.ranks == 1:
        return Line(time, source.pod, source.first, message)
    marked = _RANK.match(message)
    return (
        Line(time, source.pod, int(marked[1]), message[marked.end() :])
        if marked
        else Line(time, source.pod, None, message)
    )


def merged(logs: Iterable[Iterator[Line]]) -> Iterator[Line]:
    """All lines by time; only one line of each log is in memory at a time."""
    return heapq.merge(*logs, key=lambda line: line.time)


def printer(chosen: list[Source], *, timestamps: bool, alone: bool) -> Callable[[Line], str]:
    """A function that formats a line, with its rank unless there is only one or one was selected."""
    several = not alone and sum(source.ranks for source in chosen) > 1
    width = len(str(max((source.first + source.ranks - 1 for source in chosen), default=0)))

    def text(line: Line) -> str:
        who = f"[rank {line.rank:>{width}}] " if line.rank is not None else f"[{line.source}] "
        return f"{line.time + ' ' if timestamps else ''}{who if several else ''}{line.text}"

    return text


def lines(
    cluster: Cluster, source: Source, *, tail: int | None, follow: bool = False, since: str = ""
) -> Iterator[Line]:
    """The last ``tail`` lines or all, or those after the time ``since``; ``follow`` waits for more while it runs."""
    query = {"timestamps": "true", "follow": str(follow).lower(), "container": source.container}
    if since:
        query["sinceTime"] = since
    elif tail is not None:
        query["tailLines"] = str(tail)
    path = core_path(cluster.namespace, "pods", source.pod, "log")
    made = (read(source, text) for text in cluster.lines(path, **query))
    return (line for line in made if line.time > since)


def chosen(found: list[Source], options: argparse.Namespace) -> list[Source]:
    """The pods that the options select; raises :class:`RemoteError` with the available ones."""
    if not found:
        raise RemoteError(f"{options.name} has no pods now; `trainwright describe {options.name}` says why")
    attempts = sorted({source.attempt for source in found})
    attempt = attempts[-1] if options.attempt is None else options.attempt
    if options.previous:
        attempt = max((one for one in attempts if one < attempts[-1]), default=attempts[-1] - 1)
    of_attempt = [source for source in found if source.attempt == attempt]
    if not of_attempt:
        listed = ", ".join(map(str, attempts))
        raise RemoteError(f"attempt {attempt} has no pods; there are pods of attempt {listed}")
    of_rank = [source for source in of_attempt if options.rank is None or source.has(options.rank)]
    if not of_rank:
        last = max(source.first + source.ranks for source in of_attempt) - 1
        raise RemoteError(f"attempt {attempt} has no pod of rank {options.rank}; its ranks are 0 to {last}")
    return of_rank
