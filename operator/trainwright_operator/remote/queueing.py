"""``trainwright queue``: who uses the quota of a LocalQueue of Kueue, who waits for it, in which order and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from rich.console import Group, RenderableType

from trainwright_operator.api.names import LABEL_JOB
from trainwright_operator.core.queues.kueue import UNSEEN
from trainwright_operator.core.queues.workload import PLURAL, VERSION, On, Workload, places_of, places_path
from trainwright_operator.core.times import read_time
from trainwright_operator.remote.cluster import Absent, Cluster, Object, RemoteError
from trainwright_operator.remote.command import DONE, command, show
from trainwright_operator.remote.tables import section

HEADINGS = ("PLACE", "OVERALL", "JOB", "PRIORITY", "PODS", "SINCE", "STATE", "WHY")
MOST_PLACES = 100_000
"""The most that Kueue answers at once."""
Places = Mapping[str, tuple[int, int]]
"""By the name of a Workload, its place in the LocalQueue and in the ClusterQueue."""
NO_KUEUE = f"this cluster does not serve {VERSION}: install Kueue 0.15 or newer"


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    workloads = [one for one in map(Workload, _items(cluster, PLURAL)) if not one.finished]
    queues = _asked_for(_items(cluster, "localqueues"), workloads)
    if options.name:
        queues = {name: queue for name, queue in queues.items() if name == options.name}
    if not queues:
        wanted = f"LocalQueue named {options.name!r}" if options.name else "LocalQueue"
        raise RemoteError(f"no {wanted} in namespace {cluster.namespace}; `kubectl get localqueues -A` lists all")
    now = datetime.now(UTC)
    for name, queue in queues.items():
        mine = [one for one in workloads if one.queue == name]
        show(Group(*_section(queue, mine, _places(cluster, name), now)))
    return DONE


def _asked_for(queues: list[Object], workloads: list[Workload]) -> dict[str, Object]:
    """The LocalQueues by name, also those that do not exist and that somebody waits for."""
    known = {_name(one): one for one in queues}
    return {name: known.get(name, {"metadata": {"name": name}}) for name in sorted({*known, *_queues_of(workloads)})}


def _queues_of(workloads: list[Workload]) -> set[str]:
    return {one.queue for one in workloads if one.queue}


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _items(cluster: Cluster, plural: str) -> list[Object]:
    try:
        return cluster.items(f"/apis/{VERSION}/namespaces/{cluster.namespace}/{plural}")
    except Absent:
        raise RemoteError(NO_KUEUE) from None


def _places(cluster: Cluster, queue: str) -> Places:
    """The places of those that wait; none where Kueue's visibility API is not served, or may not be read."""
    try:
        return places_of(cluster.items(places_path(cluster.namespace, queue), limit=str(MOST_PLACES)))
    except RemoteError:
        return {}


def _section(queue: Object, workloads: list[Workload], places: Places, now: datetime) -> Iterator[RenderableType]:
    """A line about the queue, then those that hold its quota, then those that wait, in their order."""
    holding = [one for one in workloads if one.reserved]
    waiting = sorted((one for one in workloads if not one.reserved), key=lambda one: _order(one, places))
    of = f"ClusterQueue {queue['spec'].get('clusterQueue', '')}" if "spec" in queue else "no such LocalQueue exists"
    yield f"queue {_name(queue)} ({of}): {len(holding)} admitted, {len(waiting)} waiting"
    ordered = [*sorted(holding, key=_created), *waiting]
    yield from section(HEADINGS, [_row(one, places, now) for one in ordered])
    yield ""


def _order(workload: Workload, places: Places) -> tuple[int, int, str]:
    """Kueue's own order; else the higher priority first, then the older."""
    last = (len(places) + 1, 0)
    return places.get(workload.name, last)[0], -_priority(workload), _created(workload)


def _row(workload: Workload, places: Places, now: datetime) -> list[str]:
    place, overall = ("", "") if workload.reserved else places.get(workload.name, ("-", "-"))
    state, why, since = _state(workload)
    pods = str(_pods(workload))
    return [str(place), str(overall), _job(workload), str(_priority(workload)), pods, _age(since, now), state, why]


def _pods(workload: Workload) -> int:
    """Those that it has quota for, which may be fewer than an elastic job asks for; else those that it asks for."""
    given = (workload.status.get("admission") or {}).get("podSetAssignments")
    return sum(int(one.get("count") or 1) for one in given or workload.spec.get("podSets") or ())


def _state(workload: Workload) -> tuple[str, str, datetime | None]:
    if workload.evicted:
        condition = workload.condition(On.EVICTED)
        word = "Stopping" if workload.reserved else "Queued"
        return word, f"{condition.get('reason')}: {condition.get('message')}", _time(condition)
    if workload.admitted:
        return "Admitted", ", ".join(workload.flavors), workload.admitted_at
    condition = workload.condition(On.QUOTA_RESERVED)
    if workload.reserved:
        checks = [f"{one['name']} is {one.get('state')}" for one in workload.checks]
        return "Reserved", "; ".join(checks), _time(condition)
    return "Queued", condition.get("message") or condition.get("reason") or UNSEEN, workload.created


def _job(workload: Workload) -> str:
    """The TrainingJob's name; what else is in the queue by the name of its Workload."""
    return str((workload.stored["metadata"].get("labels") or {}).get(LABEL_JOB) or workload.name)


def _priority(workload: Workload) -> int:
    return int(workload.spec.get("priority") or 0)


def _created(workload: Workload) -> str:
    return str(workload.stored["metadata"].get("creationTimestamp") or "")


def _time(condition: Mapping[str, str]) -> datetime | None:
    return read_time(condition.get("lastTransitionTime"))


def _age(since: datetime | None, now: datetime) -> str:
    if since is None:
        return ""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
