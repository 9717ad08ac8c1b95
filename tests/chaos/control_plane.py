"""Jobs on simulated nodes, with the real control plane and operator: what befalls them while they run.

After each round every job has ended as it had to, its status explains every attempt, its time adds up, and nothing is
left of it once it is deleted.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import urllib3
from aiohttp import web

from chaos.plan import CONTROL_FAULTS, Simulated
from cluster.control_plane import ControlPlane
from cluster.kube import ApiError, Kube, WaitError
from cluster.paths import CHECKOUT
from cluster.say import ClusterError
from cluster.simulated import simulated_node
from integration import proxy
from integration.jobs import job
from integration.operators import Operator
from trainwright_operator.core.times import read_time

Object = dict[str, Any]
PATIENCE_SECONDS = 300
NO_ANSWER = (ApiError, urllib3.exceptions.HTTPError, ClusterError)
EXITS = {"Succeeded": 0, "TooManyRestarts": 1, "BadConfiguration": 64}


class Failing(proxy.Proxy):
    """Answers for a while with an error instead of asking the API server."""

    status, until = 0, 0.0

    def fail(self, status: int, seconds: float) -> None:
        self.status, self.until = status, time.monotonic() + seconds

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if time.monotonic() < self.until:
            return web.json_response({"kind": "Status", "code": self.status}, status=self.status)
        return await super().serve(request)


class Patient(Operator):
    """Takes its time to start, on a machine that real trainings keep busy."""

    def _until(self, true: Callable[[], bool], seconds: float) -> None:
        super()._until(true, 5 * seconds)


class Chaos:
    """One control plane and one operator over many rounds."""

    def __init__(self, cluster: ControlPlane, folder: Path, failing: Failing, through: Kube, namespace: str) -> None:
        self._cluster, self._proxy, self._namespace = cluster, failing, namespace
        self._operator = Patient(through, namespace, folder)
        self._kube = cluster.kube

    def start(self) -> Chaos:
        self._operator.start().wait_leading()
        return self

    def close(self) -> None:
        if self._operator.process is not None and self._operator.process.poll() is None:
            self._operator.kill()

    def round(self, plan: Simulated) -> Object:
        """Bring its faults about; returns what was found."""
        generator = random.Random(plan.seed)
        names = {f"job-{plan.number}-{index}": end for index, end in enumerate(plan.ends, 1)}
        waiting, seconds = list(names.items()), []
        for number, (pause, kind) in enumerate(plan.faults):
            while waiting and (len(names) - len(waiting)) * len(plan.faults) <= number * len(names):
                self._begin(*waiting.pop(0))  # one after another, so that every fault meets one that runs
            time.sleep(pause)
            began = time.monotonic()
            self._strike(kind, generator)
            seconds.append(round(time.monotonic() - began, 1))
        for name, end in waiting:
            self._begin(name, end)
        problems = [problem for name, end in names.items() for problem in self._judge(name, end)]
        problems += self._removed(list(names))
        return {
            "ends": plan.ends,
            "faults": [kind for _, kind in plan.faults],
            "seconds": seconds,
            "problems": problems,
        }

    def _begin(self, name: str, end: str) -> None:
        made = job(name, 2, run_for="15s", exit_code=str(EXITS[end]))
        made = made.with_("spec.maxRestarts", 1 if end == "TooManyRestarts" else 10)
        _patiently(lambda: bool(self._kube.apply(made.manifest(), self._namespace)))

    # -- what befalls them

    def _strike(self, kind: str, generator: random.Random) -> None:
        what, _, how = kind.partition(" ")
        seconds = CONTROL_FAULTS[kind]
        if kind.startswith("answers"):
            self._proxy.fail(int(kind.rpartition(" ")[2]), seconds)
        elif what == "pod":
            self._hit_pod(how, generator)
        elif what == "node":
            self._lose_node(generator, seconds)
        elif what == "operator":
            self._hit_operator(how, seconds)
        else:
            self._hit_program("kube-apiserver" if what == "api" else what, kind.rpartition(" ")[2], seconds)
        if self._operator.process is not None and self._operator.process.poll() is not None:
            self._operator.again()  # as its Deployment would

    def _hit_operator(self, how: str, seconds: float) -> None:
        assert self._operator.process is not None
        if how == "killed":
            self._operator.kill()
            self._operator.again()
            return
        self._operator.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._operator.process.send_signal(signal.SIGCONT)

    def _hit_program(self, name: str, how: str, seconds: float) -> None:
        daemon = next(one for one in self._cluster.daemons() if one.name == name)
        if how == "killed":
            daemon.kill()
            time.sleep(seconds)
        elif (pid := daemon.pid()) is not None:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
        self._cluster.up()  # what ended meanwhile starts again

    def _hit_pod(self, how: str, generator: random.Random) -> None:
        with suppress(*NO_ANSWER):
            pods = [pod for pod in self._kube.list("Pod", self._namespace) if pod["status"].get("phase") == "Running"]
            if pods:
                name = generator.choice(sorted(pod["metadata"]["name"] for pod in pods))
                if how == "deleted":
                    self._kube.delete("Pod", name, self._namespace)
                else:
                    self._kube.evict(name, self._namespace)

    def _lose_node(self, generator: random.Random, seconds: float) -> None:
        name = f"node-{generator.randrange(self._cluster.nodes)}"
        with suppress(*NO_ANSWER):
            self._kube.delete("Node", name, None)
        time.sleep(seconds)
        _patiently(lambda: self._cluster.add_node(simulated_node(name)) is None)

    # -- what must hold afterwards

    def _judge(self, name: str, end: str) -> Iterator[str]:
        try:
            found = self._kube.wait_for("TrainingJob", name, self._namespace, _has_ended, PATIENCE_SECONDS, "to end")
        except WaitError as error:
            yield str(error)
            return
        status = found["status"]
        wanted = "Succeeded" if end == "Succeeded" else "Failed"
        reason = next((one["reason"] for one in status["conditions"] if one["type"] == wanted), None)
        if status["state"] != wanted or (wanted == "Failed" and reason != end):
            yield f"{name} is {status['state']} ({reason}) instead of {end}"
        counted = sum(record.get("outcome") == "Failed" for record in status["attempts"])
        expected = {"Succeeded": 0, "TooManyRestarts": 2, "BadConfiguration": 1}[end]
        if counted != expected:
            yield f"{name} counts {counted} failures instead of {expected}"
        for record in status["attempts"]:
            if not (record.get("outcome") and record.get("reason") and record.get("endTime")):
                yield f"attempt {record['attempt']} of {name} is not explained: {record}"
        yield from _unaccounted(name, status)
        active = [one["metadata"]["name"] for one in self._jobs(name) if one["status"].get("active")]
        if active:
            yield f"{name} has ended, and {', '.join(active)} goes on"

    def _jobs(self, name: str) -> list[Object]:
        return self._kube.list("Job", self._namespace, f"trainwright.dev/job={name}")

    def _removed(self, names: list[str]) -> list[str]:
        """Delete the jobs; what is left of them after a while is a problem."""
        for name in names:
            _patiently(lambda name=name: self._kube.delete("TrainingJob", name, self._namespace) is None)
        left: list[str] = []

        def gone() -> bool:
            kinds = ("TrainingJob", "Job", "Pod", "Service", "ConfigMap")
            left[:] = [
                f"{kind} {one['metadata']['name']}"
                for kind in kinds for one in self._kube.list(kind, self._namespace)
                if (one["metadata"].get("labels") or {}).get("trainwright.dev/job") in names
                or one["metadata"]["name"] in names
            ]  # fmt: skip
            return not left

        try:
            _patiently(gone)
        except ClusterError:
            return [f"left behind: {', '.join(left[:5])}"]
        return []


def _unaccounted(name: str, status: Object) -> Iterator[str]:
    goodput = status.get("goodput") or {}
    since, end = read_time(goodput.get("since")), read_time(status.get("completionTime"))
    if since is None or end is None:
        yield f"{name} has no account of its time"
        return
    life, accounted = (end - since).total_seconds(), sum(goodput["seconds"].values())
    if abs(life - accounted) > max(1.0, 0.01 * life):
        yield f"the goodput of {name} accounts for {accounted:.1f} s of {life:.1f} s"


def _has_ended(found: Object) -> bool:
    return (found.get("status") or {}).get("state") in ("Succeeded", "Failed")


def _patiently(true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(*NO_ANSWER):
            if true():
                return
        time.sleep(0.3)
    raise ClusterError(f"not so within {seconds:g} s")


@contextmanager
def chaos(folder: Path) -> Iterator[Chaos]:
    """A control plane, an operator that reaches it through a proxy, and a namespace; no trace of them afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("aiohttp.server", "asyncio"):  # the proxy's connections break, which is the point
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    cluster = ControlPlane(f"chaos-{os.getpid()}")
    former, proxy.Proxy = proxy.Proxy, Failing  # type: ignore[misc]
    try:
        cluster.up()
        for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
            for crd in cluster.kube.apply(path):
                cluster.kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)
        namespace = cluster.kube.namespace("chaos", restricted=False)
        with proxy.proxied(cluster.kube, folder) as (failing, through):
            assert isinstance(failing, Failing)
            running = Chaos(cluster, folder, failing, through, namespace)
            try:
                yield running.start()
            finally:
                running.close()
    finally:
        proxy.Proxy = former  # type: ignore[misc]
        cluster.down()
