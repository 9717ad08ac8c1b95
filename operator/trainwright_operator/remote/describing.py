"""``trainwright describe``: why a job is not running, then its conditions, pods and events."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from trainwright.footprint import gib
from trainwright_operator.api.names import API_VERSION, CONTAINER, POOL_PLURAL
from trainwright_operator.api.spec import parse_pool
from trainwright_operator.api.status import MEMORY_PARTS
from trainwright_operator.core import display, goodput
from trainwright_operator.core.placement.memory import memory_of
from trainwright_operator.core.states import Object, status_of
from trainwright_operator.core.times import read_time
from trainwright_operator.remote.board import STYLES
from trainwright_operator.remote.cluster import Cluster, Forbidden, RemoteError
from trainwright_operator.remote.command import DONE, command, show
from trainwright_operator.remote.diagnosis import Facts, Finding, diagnose
from trainwright_operator.remote.jobs import core_path, find_job, find_pods
from trainwright_operator.remote.loglines import decisive_container
from trainwright_operator.remote.tables import section
from trainwright_operator.report.summary import TIMES

MOST_EVENTS = 12


@command
def main(cluster: Cluster, options: argparse.Namespace) -> int:
    facts = gather(cluster, options.name, datetime.now().astimezone())
    show(render(facts, diagnose(facts)))
    return DONE


def gather(cluster: Cluster, name: str, now: datetime) -> Facts:
    """Everything readable; ``hidden`` lists what is forbidden, ``unread`` what failed."""
    job = find_job(cluster, name)
    hidden: list[str] = []
    unread: list[str] = []

    def readable(what: str, read: Callable[[], Sequence[Object]]) -> Sequence[Object] | None:
        try:
            return read()
        except Forbidden:
            hidden.append(what)
        except RemoteError as error:
            unread.append(f"{what}: {error}")
        return None

    namespace = job["metadata"]["namespace"]
    pods = readable("pods", lambda: find_pods(cluster, job))
    events = readable("events", lambda: cluster.items(core_path(namespace, "events")))
    claims = readable("persistentvolumeclaims", lambda: cluster.items(core_path(namespace, "persistentvolumeclaims")))
    quotas = readable("resourcequotas", lambda: cluster.items(core_path(namespace, "resourcequotas")))
    pools = readable(POOL_PLURAL, lambda: cluster.items(f"/apis/{API_VERSION}/{POOL_PLURAL}"))
    own = None if events is None else [event for event in events if about(event, job, pods or ())]
    return Facts(job, now, pods or (), own, claims, quotas, pools, tuple(hidden), tuple(unread))


def about(event: Object, job: Object, pods: Sequence[Object]) -> bool:
    """Whether an event is about the job, its pods, or the Jobs of its attempts."""
    who, name = event.get("involvedObject") or {}, job["metadata"]["name"]
    if who.get("kind") == job["kind"]:
        return who.get("uid") in (None, job["metadata"]["uid"])
    if who.get("kind") == "Job":
        return re.fullmatch(rf"{re.escape(name)}-\d+-\d+", str(who.get("name"))) is not None
    return who.get("kind") == "Pod" and who.get("uid") in {pod["metadata"]["uid"] for pod in pods}


# Rendering


def render(facts: Facts, findings: list[Finding]) -> RenderableType:
    return Group(*_parts(facts, findings))


def _parts(facts: Facts, findings: list[Finding]) -> Iterator[RenderableType]:
    status, meta = status_of(facts.job), facts.job["metadata"]
    title = Text(meta["name"], style="bold")
    title.append(f"  namespace {meta.get('namespace', 'default')}  ", style="dim")
    title.append(status["display"]["state"], style=STYLES.get(status["state"], ""))
    yield title
    for finding in findings:
        yield ""
        yield Text(finding.what)
        if finding.fix:
            yield Text(f"  -> {finding.fix}", style="bold")
    if not findings:
        yield Text(_well(facts))
    if memory := _memory(facts):
        yield Text(memory)
    if anomalies := display.anomalies(status):
        yield Text(f"anomalies: {anomalies}")
    yield from (Text(f"{name}: {value}") for name, value in goodput.facts(status))
    yield from _conditions(facts)
    yield from section(TIMES, goodput.rows(status))
    yield from _addresses(facts)
    yield from _pods(facts)
    yield from _events(facts)
    for failed in facts.unread:
        yield Text(f"\nnot shown: {failed}", style="dim")
    if facts.hidden:
        yield Text(f"\nnot shown, because you may not read them: {', '.join(facts.hidden)}", style="dim")


def _well(facts: Facts) -> str:
    state = status_of(facts.job)["state"]
    shown = status_of(facts.job)["display"]
    notes = {
        "Running": f"it runs: step {shown.get('step') or 'not reported yet'}",
        "Succeeded": "it has succeeded",
    }
    return notes.get(state, "no problem found")


def _memory(facts: Facts) -> str:
    """The peak that the trainer measured, beside its estimate and the memory of an accelerator, if they are known."""
    status, spec = status_of(facts.job), facts.job["spec"]
    metrics = {one["name"]: one["value"] for one in status.get("metrics") or ()}
    known = status.get("memory") or {}
    peak = known.get("peak") if known else metrics.get("peak_memory_gib")
    if peak is None and "estimate" not in known:
        return ""
    wanted = (spec.get("accelerator") or {}).get("pool")
    pool = next((one for one in facts.pools or () if one["metadata"]["name"] == wanted), None)
    room = memory_of(parse_pool(pool)) if pool else None
    measured = "not measured yet" if peak is None else f"{peak} GiB"
    of = f" of {gib(room)}" if room else ""
    return f"peak memory of an accelerator: {measured}{of}{_estimate(known, spec)}"


def _estimate(known: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    if "estimate" in known:
        parts = ", ".join(f"{name} {known[name]}" for name in MEMORY_PARTS if name in known)
        return f"; estimated: {known['estimate']} GiB ({parts})"
    return "" if spec.get("script") else "; trainwright plan --memory estimates it from the manifest"


def _conditions(facts: Facts) -> Iterator[RenderableType]:
    holding = [one for one in status_of(facts.job).get("conditions") or () if one["status"] == "True"]
    rows = [(one["type"], _ago(one["lastTransitionTime"], facts.now), one["reason"], one["message"]) for one in holding]
    yield from section(("CONDITION", "SINCE", "REASON", "MESSAGE"), rows)


def _addresses(facts: Facts) -> Iterator[RenderableType]:
    """Where the run and its model can be seen."""
    status = status_of(facts.job)
    rows = [(one["tracker"], one["url"]) for one in status.get("runs") or ()]
    rows += [("hub", url)] if (url := (status.get("model") or {}).get("url")) else []
    yield from section(("SEEN IN", "ADDRESS"), rows)


def _pods(facts: Facts) -> Iterator[RenderableType]:
    rows = [
        (
            pod["metadata"]["name"],
            (pod.get("spec") or {}).get("nodeName") or "",
            _pod_state(pod),
            _ago(pod["metadata"].get("creationTimestamp"), facts.now),
        )
        for pod in sorted(facts.pods, key=lambda pod: str(pod["metadata"]["name"]))
    ]
    yield from section(("POD", "NODE", "STATE", "AGE"), rows)


def _pod_state(pod: Object) -> str:
    """``Running``, ``Pending (ImagePullBackOff)``, ``Failed (Error, exit code 137)``."""
    status = pod.get("status") or {}
    phase = "Terminating" if "deletionTimestamp" in pod["metadata"] else status.get("phase", "Pending")
    states = (one.get("state") or {} for one in status.get("containerStatuses") or () if one["name"] == CONTAINER)
    state = next(states, {})
    if reason := (state.get("waiting") or {}).get("reason"):
        return f"{phase} ({reason})"
    if ended := state.get("terminated"):
        code = ended.get("exitCode", 0)
        return f"{phase} ({ended.get('reason', 'ended')}, exit code {code})" if code else str(phase)
    before, name = decisive_container(pod)
    if name != CONTAINER and (code := (before.get("terminated") or {}).get("exitCode")):
        return f"{phase} (init container {name}, exit code {code})"
    return str(phase)


def _events(facts: Facts) -> Iterator[RenderableType]:
    once = {_content(event): event for event in sorted(facts.events or (), key=_time)}
    newest = sorted(once.values(), key=_time)[-MOST_EVENTS:]
    rows = [
        (
            _ago(_time(event), facts.now),
            event.get("type", ""),
            event.get("reason", ""),
            f"{event['involvedObject']['kind']}/{event['involvedObject'].get('name', '')}",
            " ".join(str(event.get("message", "")).split()),
        )
        for event in newest
    ]
    yield from section(("EVENT", "TYPE", "REASON", "OBJECT", "MESSAGE"), rows)


def _content(event: Object) -> tuple[str, ...]:
    """Object, reason and message of an event, to drop repeated ones."""
    return (str(event["involvedObject"].get("name")), str(event.get("reason")), str(event.get("message")))


def _time(event: Object) -> str:
    times = (event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return str(next((time for time in times if time), event["metadata"].get("creationTimestamp") or ""))


def _ago(time: str | None, now: datetime) -> str:
    moment = read_time(time)
    return display.duration(max(0, round((now - moment).total_seconds()))) if moment else ""
