"""Nodes on which attempts failed first: those of a job are avoided after the second time, as long as there are others.

A failure that a pod reports itself, and the loss of a node, are held against the node; what was asked for (an eviction,
a preemption, a deletion), what a retry would not change, and what another pod began are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainwright.contract import shorten
from trainwright_operator.api.names import Reason
from trainwright_operator.api.status import MAX_AVOIDED, MAX_WHY
from trainwright_operator.core.causes import EVICTED, FOLLOWED
from trainwright_operator.core.history import Cause, Outcome, Record, Round

Object = dict[str, Any]

TOLERATED = 1
"""Failures of one job on a node after which it is still used like any other."""
LEAST_MESSAGE = 40
"""Less of a message says nothing."""
_LOST = frozenset({"DeletionByTaintManager", "DeletionByPodGC", Reason.CONTAINER_LOST})
"""Disruptions by which the cluster says that the node was gone or did not answer."""
_NOT_OF_A_NODE = FOLLOWED | {EVICTED, Reason.UNKNOWN, Reason.JOB_DEADLINE, Reason.IMAGE_MISMATCH}


def blamed(record: Record) -> str | None:
    """The node against which the end of an attempt is held."""
    cause = record.cause
    if cause is None or record.end is None or cause.permanent:
        return None
    failed = cause.outcome is Outcome.FAILED and cause.reason not in _NOT_OF_A_NODE
    lost = cause.outcome is Outcome.DISRUPTED and cause.reason in _LOST
    return cause.node if failed or lost else None


def avoided(records: Sequence[Record], before: Iterable[Mapping[str, Any]]) -> list[Object]:
    """``status.avoidedNodes``, the latest last; a node stays in it when its attempts have left the status."""
    found = {one["node"]: dict(one) for one in before}
    failures = [failure for record in records for failure in _failures(record)]
    for node in dict.fromkeys(node for node, _ in failures):
        ends = [end for of_node, end in failures if of_node == node]
        if len(ends) > max(TOLERATED, found.get(node, {}).get("failures", 0)):
            found[node] = {"node": node, "failures": len(ends), "why": _why(ends)}
    return list(found.values())[-MAX_AVOIDED:]


def _failures(record: Record) -> Iterator[tuple[str, tuple[str, Cause | Round]]]:
    """Each round and the attempt itself with its node, as far as they are held against one."""
    for one in record.rounds:
        if one.node:
            yield one.node, (f"attempt {record.number}, round {one.number}", one)
    if record.cause and (node := blamed(record)):
        yield node, (f"attempt {record.number}", record.cause)


def _why(ends: Sequence[tuple[str, Cause | Round]]) -> str:
    """Every end with its reason, and as much of its message as its share of the field holds."""
    share = MAX_WHY // len(ends)
    return shorten("; ".join(_end(which, end, share) for which, end in ends), MAX_WHY)


def _end(which: str, end: Cause | Round, most: int) -> str:
    message = " ".join(end.message.split()) or f"exit code {end.exit_code}"
    head = f"{which}: " if end.reason == Reason.ERROR else f"{which}: {end.reason}: "
    room = most - len(head) - len("; ")
    return head + shorten(message, room) if room >= LEAST_MESSAGE else f"{which}: {end.reason}"


def avoiding(affinity: Object | None, nodes: Iterable[str]) -> Object | None:
    """``affinity`` with the wish for other nodes: no demand, so that a job that has no others can still run."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    if not fields:
        return affinity
    found = dict(affinity or {})
    of_nodes, kind = dict(found.get("nodeAffinity") or {}), "preferredDuringSchedulingIgnoredDuringExecution"
    of_nodes[kind] = [*(of_nodes.get(kind) or ()), {"weight": 100, "preference": {"matchFields": fields}}]
    return {**found, "nodeAffinity": of_nodes}
