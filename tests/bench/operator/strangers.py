"""Pods and Jobs that are not ours, changing all the time in the same cluster: the operator must not feel them.

It watches the whole cluster here. Its processor time is taken in turns over equal spans: while nobody touches the
strangers, and while each of them is changed; what an event of a stranger would cost it is seen at once.
"""

from __future__ import annotations

import asyncio
import time

from bench.operator.stage import Stage, cpu_seconds, process_id, quiet, reached, staged, together, two_pods
from bench.operator.table import Row, show
from integration.operators import Operator
from trainwright_operator.cluster.client import Object
from trainwright_operator.cluster.resources import JOBS, PODS, TRAINING_JOBS

OURS = 50
TURNS = 2
NOISE = 0.02
"""Cores. One event a change that reached the operator would cost ten times that."""


async def main(strangers: int) -> bool:
    async with staged("strange", nodes=3) as stage:
        ours, theirs = stage.namespace("ours"), stage.namespace("theirs")
        operator = stage.operator(ours, NAMESPACES="")
        await start(stage, ours)
        await create(stage, theirs, strangers)
        await quiet(operator)
        without, with_them, changes = 0.0, 0.0, 0.0
        for turn in range(TURNS):
            spent, seconds = await changing(stage, operator, theirs, strangers, turn)
            with_them, changes = with_them + spent / seconds, changes + strangers / seconds
            without += await untouched(operator, seconds) / seconds
        operator.stop()
    rows = [
        Row("changes of strangers", changes / TURNS, "/s", digits=0),
        Row("operator's CPU without", without / TURNS, "cores", digits=3),
        Row("operator's CPU with them", with_them / TURNS, "cores", digits=3),
        Row("more", (with_them - without) / TURNS, "cores", limit=NOISE, digits=3),
    ]
    return show(f"{strangers} pods and Jobs that are not ours, each changed {TURNS} times", rows)


async def start(stage: Stage, namespace: str) -> None:
    async def one(number: int) -> None:
        await stage.api.create(TRAINING_JOBS, two_pods(number, namespace).manifest())

    await together(one, OURS)
    await reached(stage.kube, "Pod", namespace, 2 * OURS)


def stranger(number: int, namespace: str) -> Object:
    """Nine pods that nobody schedules to one Job that makes none."""
    spec = {"schedulerName": "nobody", "restartPolicy": "Never", "containers": [{"name": "one", "image": "one"}]}
    meta = {"name": f"stranger-{number}", "namespace": namespace}
    if number % 10:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    job = {"suspend": True, "template": {"spec": spec}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": job}


async def create(stage: Stage, namespace: str, strangers: int) -> None:
    async def one(number: int) -> None:
        await stage.api.create(PODS if number % 10 else JOBS, stranger(number, namespace))

    await together(one, strangers)


async def changing(stage: Stage, operator: Operator, namespace: str, strangers: int, turn: int) -> tuple[float, float]:
    """Change each once; the processor seconds that the operator spent meanwhile, and how long it took."""
    started, spent = time.monotonic(), cpu_seconds(process_id(operator))

    async def one(number: int) -> None:
        patch = {"metadata": {"annotations": {"turn": str(turn)}}}
        await stage.api.patch(PODS if number % 10 else JOBS, namespace, f"stranger-{number}", patch)

    await together(one, strangers)
    return cpu_seconds(process_id(operator)) - spent, time.monotonic() - started


async def untouched(operator: Operator, seconds: float) -> float:
    spent = cpu_seconds(process_id(operator))
    await asyncio.sleep(seconds)
    return cpu_seconds(process_id(operator)) - spent
