"""An operator that restarts over many jobs that need nothing: how soon it is idle, its memory, its writes (none).

The jobs are created straight, each with the very status that the operator would have come to, so that there is nothing
to do. Half of them are suspended before their first attempt; half have succeeded, and their time to live has taken
their children. What remains is the price of a TrainingJob itself.
"""

from __future__ import annotations

import time

from bench.operator.stage import (
    Stage,
    cpu_seconds,
    peak_mib,
    process_id,
    quiet,
    resident_mib,
    staged,
    together,
    two_pods,
    writes,
)
from bench.operator.table import Row, show
from builders import JobBuilder
from scene import Scene
from trainwright_operator.cluster.client import Object
from trainwright_operator.cluster.informer import watched
from trainwright_operator.cluster.resources import TRAINING_JOBS


async def main(jobs: int) -> bool:
    async with staged("idle", nodes=0) as stage:
        namespace = stage.namespace("idle")
        stage.operator(namespace).stop()  # a first start makes the lease
        await create(stage, namespace, jobs)
        bare = await bare_lists(stage, namespace)
        started = time.monotonic()
        operator = stage.operator(namespace)
        leading = time.monotonic() - started
        idle_after = await quiet(operator)
        pid = process_id(operator)
        spent, written = cpu_seconds(pid), writes(operator)
        rows = [
            Row("the bare lists, by the operator's own client", bare, "s", digits=1),
            Row("restart, interpreter included, until it leads", leading, "s", digits=1),
            Row("restart until idle, beside the bare lists", idle_after - started - bare, "s", limit=10, digits=1),
            Row("restart: CPU until idle", spent, "s", digits=1),
            Row("restart: writes", written, limit=0, digits=0),
            Row("memory at its peak", peak_mib(pid), "MiB", limit=300, digits=0),
            Row("memory when idle", resident_mib(pid), "MiB", limit=300, digits=0),
        ]
        operator.stop()
    return show(f"{jobs} idle jobs: half suspended, half succeeded", rows)


async def create(stage: Stage, namespace: str, jobs: int) -> None:
    suspended = Scene(two_pods(0, namespace).suspended()).settle().status
    succeeded = Scene(two_pods(0, namespace)).settle().start_pods().settle()
    succeeded.push(step=90, maxSteps=100).exit_all(0, step=100, max_steps=100, metrics={"eval_loss": 1.5})
    ended = succeeded.wait(60).settle().status
    assert (suspended["state"], ended["state"]) == ("Suspended", "Succeeded")

    async def one(number: int) -> None:
        job = two_pods(number, namespace)
        await stored(stage, job.suspended() if number % 2 else job, suspended if number % 2 else ended)

    await together(one, jobs)


async def stored(stage: Stage, job: JobBuilder, status: Object) -> None:
    made = (await stage.api.create(TRAINING_JOBS, job.manifest()))["metadata"]
    await stage.api.patch_status(TRAINING_JOBS, made["namespace"], made["name"], {"status": status})


async def bare_lists(stage: Stage, namespace: str) -> float:
    """Seconds to list what the operator watches, in chunks as it does."""
    started = time.monotonic()
    for resource, selector in watched().items():
        await stage.api.list(resource, namespace, selector)
    return time.monotonic() - started
