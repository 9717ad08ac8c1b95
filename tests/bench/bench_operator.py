"""What the operator costs, as ratios and counts on a control plane on loopback: ``make bench-operator``.

*Burst*: N TrainingJobs of two pods are created at once; the time until all 2N pods exist, beside the floor: the same
TrainingJobs, Services, Jobs and status writes by a bare asyncio client with no operator. Both in one run, in turn.
*Idle*: the operator is restarted over the same jobs: writes, CPU, memory, and the time beside that of the bare lists.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from builders import make_job
from cluster.control_plane import ControlPlane
from cluster.paths import CHECKOUT
from cluster.simulated import FOREVER, RUN_FOR
from integration.operators import Operator
from trainwright_operator.cluster.api import Api, Object
from trainwright_operator.cluster.connection import from_kubeconfig
from trainwright_operator.cluster.resources import BY_KIND, JOBS, PODS, TRAINING_JOBS
from trainwright_operator.core.observe import Observed
from trainwright_operator.core.plan import plan
from trainwright_operator.core.pools import choose
from trainwright_operator.core.spec import parse_job

CONCURRENCY = 32
PATIENT = {"WORKERS": "32", "LEASE_DURATION": "15", "LEASE_RENEW_DEADLINE": "10", "LEASE_PERIOD": "2"}


def manifest(number: int, namespace: str) -> Object:
    job = make_job(f"job-{number}").nodes(2).with_("spec.output", {"emptyDir": {}})
    job = job.with_("spec.podTemplate.metadata.annotations", {RUN_FOR: FOREVER})
    job = job.with_("spec.podTemplate.resources", {"requests": {"cpu": "1m"}})
    return job.without("metadata.uid").with_("metadata.namespace", namespace).manifest()


async def together(work: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int) -> None:
        async with room:
            await work(number)

    await asyncio.gather(*map(one, range(count)))


async def pods_exist(api: Api, namespace: str, count: int) -> None:
    async with asyncio.timeout(600):
        while len((await api.list(PODS, namespace)).items) < count:
            await asyncio.sleep(0.5)


async def floor(api: Api, namespace: str, jobs: int) -> float:
    """Seconds until all pods exist when a bare client writes what the operator would."""
    started = time.monotonic()

    async def one(number: int) -> None:
        stored = await api.create(TRAINING_JOBS, manifest(number, namespace))
        job = parse_job(stored)
        planned = plan(job, choose(job, {}), Observed(), datetime.now(UTC))
        for child in planned.apply:
            await api.create(BY_KIND[child["kind"]], child)
        await api.patch_status(TRAINING_JOBS, namespace, job.name, {"status": planned.status})

    await together(one, jobs)
    await pods_exist(api, namespace, 2 * jobs)
    return time.monotonic() - started


async def burst(api: Api, namespace: str, jobs: int) -> float:
    """Seconds until all pods exist when the operator makes them."""
    started = time.monotonic()

    async def one(number: int) -> None:
        await api.create(TRAINING_JOBS, manifest(number, namespace))

    await together(one, jobs)
    await pods_exist(api, namespace, 2 * jobs)
    return time.monotonic() - started


async def bare_lists(api: Api, namespace: str) -> float:
    started = time.monotonic()
    for resource in (TRAINING_JOBS, JOBS, PODS):
        await api.list(resource, namespace)
    return time.monotonic() - started


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def bench(cluster: ControlPlane, jobs: int, folder: Path) -> list[tuple[str, str]]:
    kube = cluster.kube
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        for crd in kube.apply(path):
            kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
    spaces = [kube.namespace(name, restricted=False) for name in ("floor", "burst")]
    async with Api(from_kubeconfig(Path(kube.kubeconfig))) as api:
        bare = await floor(api, spaces[0], jobs)
        operator = Operator(kube, spaces[1], folder, PATIENT).start().wait_leading()
        assert operator.process is not None
        before = operator.requests()
        ours = await burst(api, spaces[1], jobs)
        spent = cpu_seconds(operator.process.pid)
        await asyncio.sleep(3)
        writes = operator.requests() - before
        operator.stop()
        lists = await bare_lists(api, spaces[1])
        started = time.monotonic()
        again = Operator(kube, spaces[1], folder, PATIENT).start(120).wait_leading(120)
        assert again.process is not None
        restarted = time.monotonic() - started
        await asyncio.sleep(5)
        idle = again.requests()
        rows = [
            ("bare client, until all pods exist", f"{bare:.1f} s"),
            ("operator, until all pods exist", f"{ours:.1f} s"),
            ("ratio (limit 1.5)", f"{ours / bare:.2f}"),
            ("operator's CPU in the burst", f"{spent:.1f} s"),
            ("writes a job, with its Events", f"{(writes['POST'] + writes['PATCH']) / jobs:.2f}"),
            ("restart: bare lists", f"{lists:.1f} s"),
            ("restart: until it leads, interpreter and imports included", f"{restarted:.1f} s"),
            ("restart: writes (limit 0)", str(idle["POST"] + idle["PATCH"] + idle["DELETE"])),
            ("restart: memory", f"{resident_mib(again.process.pid):.0f} MiB"),
            ("restart: CPU until idle", f"{cpu_seconds(again.process.pid):.1f} s"),
        ]
        again.stop()
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    jobs = parser.parse_args().jobs
    cluster = ControlPlane(f"bench-{os.getpid()}", nodes=max(3, jobs // 100))
    try:
        cluster.up()
        with tempfile.TemporaryDirectory() as folder:
            rows = asyncio.run(bench(cluster, jobs, Path(folder)))
    finally:
        cluster.down()
    table = Table("what", "measured", title=f"{jobs} TrainingJobs of two pods")
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
