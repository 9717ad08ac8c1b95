"""Many jobs in a queue of Kueue with room for a tenth of them, beside plain batch Jobs in the same queue.

The peer is Kueue's own integration of Jobs, which needs no second controller. Both take turns on one control plane. The
writes and the CPU of a job that only waits are measured while the queue has no room at all.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.operator.stage import (
    Stage,
    count,
    cpu_seconds,
    peak_mib,
    process_id,
    quiet,
    reached,
    staged,
    together,
    two_pods,
    writes,
)
from bench.operator.table import Row, show
from cluster.kueue import Kueue
from cluster.simulated import RUN_FOR
from trainwright_operator.cluster.client import Resource
from trainwright_operator.cluster.resources import EVENTS, JOBS, TRAINING_JOBS, WORKLOADS

Object = dict[str, Any]
RUNS = "2s"
QUIET_WATCH = 20.0
QUEUE = {"kueue.x-k8s.io/queue-name": "team"}
CLUSTER_QUEUES = Resource(WORKLOADS.api_version, "ClusterQueue", "clusterqueues", namespaced=False)


async def main(jobs: int) -> bool:
    room = max(1, jobs // 10)
    async with staged("queues", nodes=max(3, room // 20)) as stage:
        kueue = Kueue(stage.cluster, {})
        kueue.up()
        try:
            floors = [await plain(stage, "plain-0", jobs, room)]
            ours, spent = await queued(stage, "queued", jobs, room)
            floors.append(await plain(stage, "plain-1", jobs, room))
        finally:
            kueue.down()
        floor = sum(floors) / len(floors)
        rows = [
            Row("plain Jobs, until all have run", floor, "s", digits=1),
            Row("TrainingJobs, until all have run", ours, "s", digits=1),
            Row("ratio", ours / floor, limit=1.2),
            *spent,
        ]
        return show(f"{jobs} jobs of one pod in a queue with room for {room}", rows)


async def plain(stage: Stage, name: str, jobs: int, room: int) -> float:
    namespace = team(stage, name, room)

    async def one(number: int) -> None:
        await stage.api.create(JOBS, batch_job(number, namespace))

    started = time.monotonic()
    await together(one, jobs)
    await all_done(stage, JOBS, namespace, jobs, lambda one: "completionTime" in (one.get("status") or {}))
    return time.monotonic() - started


async def queued(stage: Stage, name: str, jobs: int, room: int) -> tuple[float, list[Row]]:
    """Seconds until all have run, and what the operator spent on it."""
    namespace = team(stage, name, 0)
    operator = stage.operator(namespace)

    async def one(number: int) -> None:
        made = two_pods(number, namespace).nodes(1).with_("metadata.labels", QUEUE)
        annotations = {RUN_FOR: RUNS}
        made = made.with_("spec.podTemplate.metadata.annotations", annotations)
        made = made.with_("spec.podTemplate.resources", {"requests": {"cpu": "1"}})
        await stage.api.create(TRAINING_JOBS, made.manifest())

    started = time.monotonic()
    await together(one, jobs)
    entered = time.monotonic() - started
    await reached(stage.kube, "kueue.x-k8s.io/v1beta2/Workload", namespace, jobs)
    await quiet(operator)
    told = count(stage.kube, "Event", namespace)
    before, cpu = writes(operator), cpu_seconds(process_id(operator))
    await asyncio.sleep(QUIET_WATCH)
    waiting = [
        Row("while all wait: writes", writes(operator) - before, limit=0, digits=0),
        Row(
            "while all wait: CPU",
            100 * (cpu_seconds(process_id(operator)) - cpu) / QUIET_WATCH,
            "% of a core",
            digits=1,
        ),
        Row("until all wait: writes a job, without Events", (before - told) / jobs),
    ]
    started = time.monotonic()
    await set_quota(stage, namespace, room)
    await all_done(stage, TRAINING_JOBS, namespace, jobs, lambda one: one.get("status", {}).get("state") == "Succeeded")
    ran = time.monotonic() - started
    await quiet(operator)
    own = [one for one in (await stage.api.list(EVENTS, namespace)).items if one["regarding"]["kind"] == "TrainingJob"]
    spent = [
        *waiting,
        Row("until all have run: writes a job, without Events", (writes(operator) - len(own)) / jobs, limit=9),
        Row("until all have run: CPU a job", 1000 * cpu_seconds(process_id(operator)) / jobs, "ms", digits=1),
        Row("operator's peak memory", peak_mib(process_id(operator)), "MiB", digits=0),
    ]
    operator.stop()
    return entered + ran, spent


async def all_done(stage: Stage, resource: Resource, namespace: str, jobs: int, done: Any) -> None:
    async with asyncio.timeout(1200):
        while sum(map(done, (await stage.api.list(resource, namespace)).items)) < jobs:
            await asyncio.sleep(0.5)


def team(stage: Stage, namespace: str, room: int) -> str:
    """A namespace with a queue of its own that has ``room`` CPUs."""
    stage.namespace(namespace)
    for kind, spec, where in (
        ("ResourceFlavor", {}, None),
        ("ClusterQueue", {"namespaceSelector": {}, "resourceGroups": quota(namespace, room)}, None),
        ("LocalQueue", {"clusterQueue": namespace}, namespace),
    ):
        meta = {"name": "team" if where else namespace} | ({"namespace": where} if where else {})
        stage.kube.apply({"apiVersion": WORKLOADS.api_version, "kind": kind, "metadata": meta, "spec": spec})
    return namespace


def quota(flavor: str, room: int) -> list[Object]:
    resources = [{"name": "cpu", "nominalQuota": room}]
    return [{"coveredResources": ["cpu"], "flavors": [{"name": flavor, "resources": resources}]}]


async def set_quota(stage: Stage, namespace: str, room: int) -> None:
    await stage.api.patch(CLUSTER_QUEUES, None, namespace, {"spec": {"resourceGroups": quota(namespace, room)}})


def batch_job(number: int, namespace: str) -> Object:
    container = {"name": "main", "image": "none", "resources": {"requests": {"cpu": "1"}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"job-{number}", "namespace": namespace, "labels": QUEUE},
        "spec": {
            "suspend": True,
            "template": {
                "metadata": {"annotations": {RUN_FOR: RUNS}},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }
