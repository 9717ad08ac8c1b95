"""``trainwright nodes``: on which nodes attempts of jobs failed first, how often, and which jobs avoid them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import UTC, datetime

from trainwright_operator.core import display
from trainwright_operator.core.avoidance import blamed
from trainwright_operator.core.history import Record
from trainwright_operator.core.states import status_of
from trainwright_operator.remote.cluster import Absent, Cluster, Object, RemoteError
from trainwright_operator.remote.command import DONE, command, show
from trainwright_operator.remote.jobs import NO_OPERATOR, jobs_path
from trainwright_operator.remote.tables import table

HEADINGS = ("NODE", "FAILURES", "JOBS", "AVOIDED BY", "LATEST", "WHY")


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    try:
        jobs = cluster.items(jobs_path(None if options.all_namespaces else cluster.namespace))
    except Absent:
        raise RemoteError(NO_OPERATOR) from None
    found = rows(jobs, datetime.now(UTC))
    if found:
        show(table(HEADINGS, found))
    else:
        print("no attempt that is still in a status failed because of a node")
    return DONE


def rows(jobs: Iterable[Object], now: datetime) -> list[tuple[str, ...]]:
    """A row for each node, the one with the most failures first."""
    ends: dict[str, list[tuple[str, Record]]] = {}
    avoiders: dict[str, set[str]] = {}
    for job in jobs:
        status, name = status_of(job), job["metadata"]["name"]
        for record in map(Record.from_dict, status.get("attempts") or ()):
            if node := blamed(record):
                ends.setdefault(node, []).append((name, record))
        for one in status.get("avoidedNodes") or ():
            ends.setdefault(one["node"], [])
            avoiders.setdefault(one["node"], set()).add(name)
    found = sorted(ends, key=lambda node: (-len(ends[node]), node))
    return [_row(node, ends[node], avoiders.get(node, set()), now) for node in found]


def _row(node: str, ends: list[tuple[str, Record]], avoiders: set[str], now: datetime) -> tuple[str, ...]:
    latest = max(ends, key=lambda end: end[1].end or now, default=None)
    age, why = "", "its attempts are not in the status any more"
    if latest is not None and latest[1].end and latest[1].cause:
        job, record = latest
        age = f"{display.duration(max(0, round((now - latest[1].end).total_seconds())))} ago"
        why = f"{job}, attempt {record.number}: {latest[1].cause.reason}: {latest[1].cause.message}"
    names = ", ".join(sorted(avoiders))
    return node, str(len(ends)), str(len({name for name, _ in ends})), names, age, why.rstrip(": ")
