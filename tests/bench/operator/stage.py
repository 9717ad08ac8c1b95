"""What the benches share: the control plane with the CRDs, jobs by the thousand, the operator, and what it spends."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from builders import JobBuilder, make_job
from cluster.control_plane import ControlPlane
from cluster.kube import Kube
from cluster.paths import CHECKOUT
from cluster.simulated import FOREVER, RUN_FOR
from integration.operators import Operator
from trainwright_operator.cluster.client import Api, from_kubeconfig

CONCURRENCY = 32
LEASE = {"LEASE_DURATION": "120", "LEASE_RENEW_DEADLINE": "100", "LEASE_PERIOD": "2"}
"""An API server that shares its cores with thousands of simulated pods may not answer for ten seconds."""
WRITES = ("POST", "PATCH", "DELETE")
"""Not PUT: with it the lease is renewed, and nothing else."""
QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Stage:
    """A control plane of one bench: two clients, and a folder for the logs."""

    cluster: ControlPlane
    kube: Kube
    api: Api
    folder: Path

    def namespace(self, name: str) -> str:
        return self.kube.namespace(name, restricted=False)

    def operator(self, namespace: str, **settings: str) -> Operator:
        """Started, and leading."""
        patience = 120.0
        return Operator(self.kube, namespace, self.folder, {**LEASE, **settings}).start(patience).wait_leading(patience)


@asynccontextmanager
async def staged(name: str, nodes: int, apart: bool = False) -> AsyncIterator[Stage]:
    """A fresh control plane with ``nodes`` nodes; nothing is left of it afterwards.

    ``apart``: it gives way to everything else, for what is asked of the operator and not of a machine shared with it.
    """
    cluster = ControlPlane(f"bench-{name}-{os.getpid()}", nodes=nodes, unlimited=True)
    try:
        cluster.up()
        if apart:
            cluster.give_way()
        for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
            for crd in cluster.kube.apply(path):
                cluster.kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
        with tempfile.TemporaryDirectory() as folder:
            async with Api(from_kubeconfig(cluster.kubeconfig)) as api:
                yield Stage(cluster, cluster.kube, api, Path(folder))
    finally:
        cluster.down()


def two_pods(number: int, namespace: str) -> JobBuilder:
    """A job of two pods, which run until they are deleted."""
    return (
        make_job(f"job-{number}")
        .nodes(2)
        .with_("spec.output", {"emptyDir": {}})
        .with_("spec.podTemplate.metadata.annotations", {RUN_FOR: FOREVER})
        .with_("spec.podTemplate.resources", {"requests": {"cpu": "1m"}})
        .without("metadata.uid")
        .with_("metadata.namespace", namespace)
    )


async def together(work: Callable[[int], Awaitable[None]], count: int) -> None:
    """``work(0)`` to ``work(count - 1)``, so many at a time as a busy client would."""
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int) -> None:
        async with room:
            await work(number)

    await asyncio.gather(*map(one, range(count)))


def count(kube: Kube, kind: str, namespace: str) -> int:
    """How many there are, for the price of one: the API server says how many remain after the first."""
    first = kube.request("GET", kube.path(kind, namespace), limit="1")
    return len(first["items"]) + int(first["metadata"].get("remainingItemCount", 0))


async def reached(kube: Kube, kind: str, namespace: str, wanted: int, seconds: float = 600) -> None:
    async with asyncio.timeout(seconds):
        while count(kube, kind, namespace) < wanted:
            await asyncio.sleep(0.1)


# What the operator spends


def process_id(operator: Operator) -> int:
    assert operator.process is not None
    return operator.process.pid


def cpu_seconds(pid: int) -> float:
    """Of the process and its threads, since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib(pid: int) -> float:
    """The most memory that the process ever had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def writes(operator: Operator) -> int:
    """Its writes so far that were answered well."""
    requests = operator.requests()
    return sum(requests[verb] for verb in WRITES)


def wanted_seconds(pid: int) -> float:
    """The processor time that the main thread had or waited for: on a busy machine little spent is not little to do."""
    had, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return (int(had) + int(waited)) / 1e9


async def quiet(operator: Operator, seconds: float = 300) -> float:
    """Wait until the operator has next to nothing to do, 5 % of a core for a while; gives when that began."""
    pid, deadline = process_id(operator), time.monotonic() + seconds
    since, before = time.monotonic(), wanted_seconds(pid)
    while time.monotonic() < deadline:
        await asyncio.sleep(0.25)
        if wanted_seconds(pid) - before >= 0.05 * QUIET_SECONDS:
            since, before = time.monotonic(), wanted_seconds(pid)
        elif time.monotonic() - since >= QUIET_SECONDS:
            return since
    raise AssertionError(f"the operator is still busy after {seconds} s")
