"""One gang of thousands of pods, beside as many pods in gangs of ten; and a gang that loses a pod and starts anew."""

from __future__ import annotations

import asyncio

from bench.operator.stage import (
    Stage,
    cpu_seconds,
    peak_mib,
    process_id,
    quiet,
    staged,
    together,
    two_pods,
    writes,
)
from bench.operator.table import Row, show
from integration.operators import Operator
from trainwright_operator.cluster.resources import PODS, TRAINING_JOBS

SMALL = 10
LOSES = 1000


async def main(pods: int) -> bool:
    async with staged("gangs", nodes=max(3, pods // 50)) as stage:
        many, _, _ = await started(stage, "many", pods // SMALL, SMALL)
        one, told, peak = await started(stage, "one", 1, pods)
        lost = await lost_pod(stage, "lost", min(LOSES, pods))
        rows = [
            Row(f"{pods // SMALL} gangs of {SMALL}, until all run: operator's CPU", many, "s", digits=1),
            Row(f"one gang of {pods}, until it runs: operator's CPU", one, "s", digits=1),
            Row("ratio", one / many, limit=1.0),
            Row("one gang: status writes and creations", told, digits=0),
            Row("one gang: operator's peak memory", peak, "MiB", digits=0, limit=400),
            Row(
                f"a gang of {min(LOSES, pods)} that loses a pod, until it runs again: CPU", lost, "s", digits=1, limit=3
            ),
        ]
        return show(f"gangs of {pods} pods in all", rows)


async def started(stage: Stage, name: str, jobs: int, nodes: int) -> tuple[float, int, float]:
    """CPU until all run, the writes, and the peak of memory of an operator that starts them; they are deleted."""
    namespace = stage.namespace(name)
    operator = stage.operator(namespace)
    before = cpu_seconds(process_id(operator)), writes(operator)
    await run_all(stage, namespace, jobs, nodes)
    spent = cpu_seconds(process_id(operator)) - before[0], writes(operator) - before[1], peak_mib(process_id(operator))
    operator.stop()
    await emptied(stage, namespace)
    return spent


async def lost_pod(stage: Stage, name: str, nodes: int) -> float:
    """CPU from the deletion of a pod until the next attempt runs."""
    namespace = stage.namespace(name)
    operator: Operator = stage.operator(namespace)
    await run_all(stage, namespace, 1, nodes)
    await quiet(operator)
    before = cpu_seconds(process_id(operator))
    pods = (await stage.api.list(PODS, namespace)).items
    await stage.api.delete(PODS, namespace, pods[nodes // 2]["metadata"]["name"])
    await running(stage, namespace, attempt=2)
    spent = cpu_seconds(process_id(operator)) - before
    operator.stop()
    return spent


async def run_all(stage: Stage, namespace: str, jobs: int, nodes: int) -> None:
    async def one(number: int) -> None:
        await stage.api.create(TRAINING_JOBS, two_pods(number, namespace).nodes(nodes).manifest())

    await together(one, jobs)
    await running(stage, namespace)


async def running(stage: Stage, namespace: str, attempt: int = 1, seconds: float = 900) -> None:
    async with asyncio.timeout(seconds):
        while not all(
            one.get("status", {}).get("state") == "Running" and one["status"]["attempts"][-1]["attempt"] == attempt
            for one in (await stage.api.list(TRAINING_JOBS, namespace)).items
        ):
            await asyncio.sleep(2)


async def emptied(stage: Stage, namespace: str, seconds: float = 600) -> None:
    """Room for what comes next."""
    for job in (await stage.api.list(TRAINING_JOBS, namespace)).items:
        await stage.api.delete(TRAINING_JOBS, namespace, job["metadata"]["name"])
    async with asyncio.timeout(seconds):
        while (await stage.api.list(PODS, namespace)).items:
            await asyncio.sleep(2)
