"""From ``kubectl apply`` to the first training step, on the cluster of `make cluster`, the images cached.

    cd tests && python -m bench.first_step [--name trainwright] [--rounds 3]

A job of two pods runs a script of its own that meets its peer, makes one step of DistributedDataParallel, and prints
when each of its own moments was. What the API server tells is stamped as it arrives here, on the same machine and clock
as the nodes. The fastest of the rounds is shown: a busy machine only ever adds. What is ours in it is the operator's
reaction, and what launcher and entry take beside importing torch, which is timed again in the same pod.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable

from bench.operator.table import Row, show
from cluster.kind.provider import Kind
from cluster.kube import Kube, Object
from integration.charts import Helm
from trainwright_operator.cluster.client import Api, Resource, from_kubeconfig
from trainwright_operator.cluster.resources import JOBS, PODS, SERVICES, TRAINING_JOBS

SYSTEM = "trainwright-bench"
MARK = "MOMENTS "
OURS_SECONDS = 1.0
SCRIPT = """
import time
entered = time.time()
import json, os, subprocess, sys

def began(pid):
    ticks = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")

moments = {"launcher": began(1), "rank": began("self"), "entered": entered}
import torch
import torch.distributed as dist
moments["imported"] = time.time()
dist.init_process_group("gloo")
dist.barrier()
moments["met"] = time.time()
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model(torch.ones(4, 8)).sum().backward()
optimizer.step()
moments["stepped"] = time.time()
dist.barrier()
again = "import time; t = time.time(); import trainwright.launch.agent; print(time.time() - t)"
moments["agent_import"] = float(subprocess.run([sys.executable, "-c", again], capture_output=True, text=True).stdout)
print(MARK + json.dumps(moments), flush=True)
dist.destroy_process_group()
""".replace("MARK", repr(MARK))

Moments = dict[str, float]


def manifest(name: str) -> Object:
    return {
        "apiVersion": TRAINING_JOBS.api_version,
        "kind": TRAINING_JOBS.kind,
        "metadata": {"name": name},
        "spec": {"script": {"inline": SCRIPT}, "accelerator": {"nodes": 2}, "output": {"emptyDir": {}}},
    }


async def measured(kube: Kube, namespace: str, name: str) -> Moments:
    """Seconds since the apply was sent, of each moment; the last of the pods counts."""
    seen: Moments = {}
    async with Api(from_kubeconfig(kube.kubeconfig)) as api:
        watches = [asyncio.create_task(stamp(api, resource, namespace, seen)) for resource in STAMPS]
        await asyncio.sleep(1)  # until the watches stand
        began = time.time()
        await asyncio.to_thread(kube.apply, manifest(name), namespace)
        seen["admitted"] = time.time()
        await asyncio.to_thread(
            kube.wait_for, "TrainingJob", name, namespace, lambda job: ended(job) == "Succeeded", 300, "to succeed"
        )
        for watch in watches:
            watch.cancel()
    pods = [pod["metadata"]["name"] for pod in kube.list("Pod", namespace, f"batch.kubernetes.io/job-name={name}-0-1")]
    told = [moments(kube.logs(pod, namespace)) for pod in pods]
    of_pods = {what: max(one[what] for one in told) for what in told[0]}
    since = {what: at - began for what, at in (seen | of_pods).items() if what != "agent_import"}
    entry = max(one["entered"] - one["rank"] for one in told)
    beside = of_pods["rank"] - of_pods["launcher"] - of_pods["agent_import"] + entry
    return {**since, "agent_import": of_pods["agent_import"], "beside_torch": max(0.0, beside)}


def moments(log: str) -> Moments:
    line = next(line for line in log.splitlines() if MARK in line)
    return dict(json.loads(line.partition(MARK)[2]))


def ended(job: Object) -> str | None:
    state = (job.get("status") or {}).get("state")
    assert state != "Failed", job["status"]
    return state


def _always(obj: Object) -> bool:
    return True


def _bound(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName"))


def _runs(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") == "Running"


STAMPS: dict[Resource, dict[str, tuple[Callable[[Object], bool], int]]] = {
    SERVICES: {"service": (_always, 1)},
    JOBS: {"job": (_always, 1)},
    PODS: {"pods": (_always, 2), "scheduled": (_bound, 2), "running": (_runs, 2)},
}
"""For each resource its moments: what must hold, and of how many objects."""


async def stamp(api: Api, resource: Resource, namespace: str, seen: Moments) -> None:
    """Note when each moment of ``resource`` was first true of enough objects."""
    version = (await api.list(resource, namespace)).version
    holding: dict[str, set[str]] = {moment: set() for moment in STAMPS[resource]}
    async for _, obj in api.watch(resource, namespace, "", version, 300):
        for moment, (holds, wanted) in STAMPS[resource].items():
            if holds(obj):
                holding[moment].add(obj["metadata"]["name"])
            if len(holding[moment]) == wanted:
                seen.setdefault(moment, time.time())


def rows(fastest: Moments) -> list[Row]:
    reaction = max(fastest["service"], fastest["job"]) - fastest["admitted"]
    ours = max(0.0, reaction) + fastest["beside_torch"]
    told = {
        "admitted": "apply sent, until admitted",
        "service": "Service seen",
        "job": "Job seen",
        "pods": "both pods created",
        "scheduled": "both pods scheduled",
        "launcher": "both launchers started",
        "running": "both pods seen running",
        "rank": "both ranks started (the launcher has imported torch, and met its peer)",
        "entered": "both scripts entered",
        "imported": "both ranks have imported torch",
        "met": "process group met",
        "stepped": "first step done",
    }
    return [
        *(Row(text, fastest[moment], "s", digits=2) for moment, text in told.items()),
        Row("importing torch in the launcher, timed again", fastest["agent_import"], "s"),
        Row("ours: the operator's reaction", max(0.0, reaction), "s"),
        Row("ours: launcher and entry, beside importing torch", fastest["beside_torch"], "s"),
        Row("ours in all", ours, "s", limit=OURS_SECONDS),
    ]


def install(cluster: Kind) -> Helm:
    """The chart with the images of this checkout, in a namespace of its own."""
    kube = cluster.kube
    kube.namespace(SYSTEM)
    helm = Helm(kube, SYSTEM)
    repository, _, tag = cluster.image("operator").rpartition(":")
    values = {"image.repository": repository, "image.tag": tag, "trainerImage": cluster.image("trainer")}
    helm.install("--take-ownership", *(part for name, value in values.items() for part in ("--set", f"{name}={value}")))
    return helm


def main() -> int:
    """0 when what is ours keeps its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="trainwright", help="of the cluster")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cluster = Kind(given.name)
    kube = cluster.kube
    helm = install(cluster)
    try:
        namespace = kube.namespace("first-step")
        timed = [asyncio.run(measured(kube, namespace, f"first-step-{number}")) for number in range(given.rounds)]
        fastest = min(timed, key=lambda one: one["stepped"])
        kept = show("two pods, from apply to the first step; seconds since the apply was sent", rows(fastest))
    finally:
        kube.delete("Namespace", "first-step", None)
        helm.uninstall()
        kube.delete("Namespace", SYSTEM, None)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
