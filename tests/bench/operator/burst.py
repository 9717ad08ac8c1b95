"""Many TrainingJobs at once: the time until all their pods exist, beside that of a client that knows what to write.

The floor is a bare client that creates the same TrainingJobs, Services and Jobs and writes the same first status; what
is above it is the operator's watching, planning and telling. Both take turns on one control plane, in the order floor,
operator, operator, floor, so that a machine that grows slower or faster does not favour one.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

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
from integration.operators import Operator
from trainwright_operator.api.spec import parse_job
from trainwright_operator.cluster.resources import BY_KIND, EVENTS, TRAINING_JOBS
from trainwright_operator.core.observe import Observed
from trainwright_operator.core.placement.pools import choose
from trainwright_operator.core.plan import plan

SAMPLE = 20
"""Jobs, one after another, of which the writes are counted until their pods exist."""
NOBODY = "nobody"
"""A scheduler that does not exist: pods come into being, and nothing happens after that."""


async def main(jobs: int) -> bool:
    async with staged("burst", nodes=max(3, 4 * jobs // 200)) as stage:
        first = await until_pods_exist(stage)
        floors, bursts, spent, restart = [], [], [], []
        for turn, bare in enumerate((True, False, False, True)):
            namespace = stage.namespace(f"burst-{turn}")
            if bare:
                floors.append(await floor(stage, namespace, jobs))
                continue
            operator = stage.operator(namespace)
            bursts.append(await burst(stage, namespace, jobs))
            await all_run(stage, namespace)
            await quiet(operator)
            spent.append(await spendings(stage, operator, jobs))
            operator.stop()
            restart = await restarted(stage, namespace)
        rows = [
            Row("bare client, until all pods exist", sum(floors) / 2, "s", digits=1),
            Row("operator, until all pods exist", sum(bursts) / 2, "s", digits=1),
            Row("ratio (the goal is 1.3)", sum(bursts) / sum(floors), limit=1.5),
            *first,
            *spent[-1],
            *restart,
        ]
        return show(f"burst of {jobs} TrainingJobs of two pods, twice", rows)


async def floor(stage: Stage, namespace: str, jobs: int) -> float:
    """Seconds until all pods exist when a bare client writes what the operator would."""
    started = time.monotonic()

    async def one(number: int) -> None:
        made = await stage.api.create(TRAINING_JOBS, two_pods(number, namespace).manifest())
        job = parse_job(made)
        planned = plan(job, choose(job, {}), Observed(), datetime.now(UTC))
        for child in planned.apply:
            await stage.api.create(BY_KIND[child["kind"]], child)
        await stage.api.patch_status(TRAINING_JOBS, namespace, job.name, {"status": planned.status})

    await together(one, jobs)
    await reached(stage.kube, "Pod", namespace, 2 * jobs)
    return time.monotonic() - started


async def burst(stage: Stage, namespace: str, jobs: int) -> float:
    """Seconds until all pods exist when the operator makes them."""
    started = time.monotonic()

    async def one(number: int) -> None:
        await stage.api.create(TRAINING_JOBS, two_pods(number, namespace).manifest())

    await together(one, jobs)
    await reached(stage.kube, "Pod", namespace, 2 * jobs)
    return time.monotonic() - started


async def until_pods_exist(stage: Stage) -> list[Row]:
    """Writes a job until its pods exist: Service, Job, status. Events are told of apart."""
    namespace = stage.namespace("first-writes")
    operator = stage.operator(namespace)
    before = writes(operator)

    for number in range(SAMPLE):
        job = two_pods(number, namespace).with_("spec.podTemplate.schedulerName", NOBODY)
        await stage.api.create(TRAINING_JOBS, job.manifest())
        await reached(stage.kube, "Pod", namespace, 2 * (number + 1))
    await quiet(operator)
    told = sum(event["regarding"]["kind"] == "TrainingJob" for event in (await stage.api.list(EVENTS, namespace)).items)
    all_writes = writes(operator) - before
    operator.stop()
    return [
        Row("writes a job until its pods exist", (all_writes - told) / SAMPLE, limit=3),
        Row("Events a job until then", told / SAMPLE),
    ]


async def all_run(stage: Stage, namespace: str, seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        while {job["status"]["state"] for job in (await stage.api.list(TRAINING_JOBS, namespace)).items} != {"Running"}:
            await asyncio.sleep(2)


async def spendings(stage: Stage, operator: Operator, jobs: int) -> list[Row]:
    """What the operator did until every job was Running and all was told."""
    events = count(stage.kube, "Event", operator.namespace)
    requests = operator.requests()
    return [
        Row("until all run: operator's CPU a job", 1000 * cpu_seconds(process_id(operator)) / jobs, "ms", digits=1),
        Row("until all run: creations a job, with Events", requests["POST"] / jobs),
        Row("until all run: status writes a job", requests["PATCH"] / jobs),
        Row("until all run: reads a job", requests["GET"] / jobs),
        Row("until all run: Events in the namespace a job, the cluster's own among them", events / jobs),
        Row("until all run: operator's peak memory", peak_mib(process_id(operator)), "MiB", digits=0),
    ]


async def restarted(stage: Stage, namespace: str) -> list[Row]:
    """What a new process writes that finds all at work."""
    operator = stage.operator(namespace)
    await quiet(operator)
    rows = [
        Row("restart over them: writes", writes(operator), limit=0, digits=0),
        Row("restart over them: CPU until idle", cpu_seconds(process_id(operator)), "s", digits=1),
    ]
    operator.stop()
    return rows
