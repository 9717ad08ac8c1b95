"""Many jobs that push their progress every five seconds, each push on a TLS connection of its own.

That is what the ``KubeflowCallback`` of transformers does, and it holds training up until it is answered. The pushes
come at an even pace from vegeta, a process of its own in Go, whose share of the machine is told: it pays the other half
of every handshake. Its bodies are what the callback sends, a step further each time, so that every push is news. The
control plane gives way to both: it shares this machine and would not share theirs, and every status write is work of
its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.operator.stage import Stage, cpu_seconds, peak_mib, process_id, quiet, reached, staged, together, two_pods
from bench.operator.table import Row, show
from cluster import programs
from integration.operators import Operator, free_port
from trainwright_operator.api.names import LABEL_JOB
from trainwright_operator.cluster.client import Object, Resource
from trainwright_operator.cluster.progress import audience, push_path
from trainwright_operator.cluster.resources import PODS, SECRETS, TRAINING_JOBS

PERIOD = 5
"""Seconds between two pushes of one job."""
ROUNDS = 12
SECRET = "trainwright-progress-tls"
TOKENS = Resource("v1", "TokenRequest", "serviceaccounts/default/token")
MEMORY = 512
"""MiB that the chart lets the operator have."""
STATUS_BUDGET = 50
"""Status writes a second that progress may cost, by the operator's own default; a span holds one second's more."""


@dataclass(frozen=True)
class Volley:
    """What became of a number of pushes; times in seconds."""

    sent: int
    answered_200: int
    median: float
    p99: float
    worst: float
    seconds: float
    generator_cpu: float
    operator_cpu: float
    status_writes: float
    reviews: float


async def main(jobs: int) -> bool:
    programs.build(("vegeta",))
    async with staged("pushes", nodes=max(3, jobs // 100), apart=True) as stage:
        namespace, port = stage.namespace("pushes"), free_port()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": namespace}}
        await stage.api.create(SECRETS, secret)
        operator = stage.operator(namespace, PROGRESS_PORT=str(port), CERTIFICATE_SECRET=SECRET)
        await start(stage, namespace, jobs)
        await quiet(operator)
        pods = await tokens(stage, namespace)
        authority = await certificate(stage, namespace)
        first = await volley(operator, pods, authority, port, range(1))
        steady = await volley(operator, pods, authority, port, range(1, ROUNDS))
        memory = peak_mib(process_id(operator))
        operator.stop()
    return show(f"{jobs} jobs that push every {PERIOD} s", rows(first, steady, memory))


async def start(stage: Stage, namespace: str, jobs: int) -> None:
    async def one(number: int) -> None:
        await stage.api.create(TRAINING_JOBS, two_pods(number, namespace).nodes(1).manifest())

    await together(one, jobs)
    await reached(stage.kube, "Pod", namespace, jobs)


async def tokens(stage: Stage, namespace: str) -> dict[str, str]:
    """A token for each job, bound to its pod, as the kubelet would mount it."""
    pods = (await stage.api.list(PODS, namespace)).items
    found: dict[str, str] = {}

    async def one(number: int) -> None:
        meta = pods[number]["metadata"]
        job = meta["labels"][LABEL_JOB]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec = {"audiences": [audience(namespace, job)], "expirationSeconds": 3600, "boundObjectRef": bound}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": TOKENS.kind,
            "metadata": {"namespace": namespace},
            "spec": spec,
        }
        found[job] = (await stage.api.create(TOKENS, request))["status"]["token"]

    await together(one, len(pods))
    return found


async def certificate(stage: Stage, namespace: str) -> Path:
    """The authority that pods are given, as a file."""
    secret = await stage.api.get(SECRETS, namespace, SECRET)
    path = stage.folder / "ca.crt"
    path.write_bytes(base64.b64decode(secret["data"]["ca.crt"]))
    return path


async def volley(operator: Operator, pods: dict[str, str], authority: Path, port: int, rounds: range) -> Volley:
    """Every pod pushes once in every round, at an even pace."""
    targets = operator.folder / "targets.json"
    with targets.open("w") as file:
        file.writelines(json.dumps(target) + "\n" for target in pushed(operator.namespace, pods, rounds))
    before, spent, started = operator.metrics() or {}, cpu_seconds(process_id(operator)), time.monotonic()
    attack = [
        str(programs.program("vegeta")), "attack", "-format=json", "-lazy", "-keepalive=false", "-timeout=5s",
        f"-rate={len(pods)}/{PERIOD}s", f"-duration={PERIOD * len(rounds)}s", f"-root-certs={authority}",
        f"-connect-to={host(operator.namespace)}:8443:127.0.0.1:{port}", f"-targets={targets}",
    ]  # fmt: skip
    results, generator_cpu = await asyncio.to_thread(run, attack, operator.folder / "results.bin")
    seconds = time.monotonic() - started
    operator_cpu, after = cpu_seconds(process_id(operator)) - spent, operator.metrics() or {}
    told = report(results)

    def rate(verb: str, code: int) -> float:
        name = f'trainwright_api_requests_total{{code="{code}",verb="{verb}"}}'
        return (after.get(name, 0) - before.get(name, 0)) / seconds

    return Volley(
        sent=told["requests"],
        answered_200=told["status_codes"].get("200", 0),
        median=told["latencies"]["50th"] / 1e9,
        p99=told["latencies"]["99th"] / 1e9,
        worst=told["latencies"]["max"] / 1e9,
        seconds=seconds,
        generator_cpu=generator_cpu / seconds,
        operator_cpu=operator_cpu / seconds,
        status_writes=rate("PATCH", 200),
        reviews=rate("POST", 201),
    )


def host(namespace: str) -> str:
    return f"trainwright-progress.{namespace}.svc"


def pushed(namespace: str, pods: dict[str, str], rounds: range) -> Iterator[Object]:
    """vegeta's targets, one push each."""
    for step in rounds:
        for job, token in pods.items():
            yield {
                "method": "POST",
                "url": f"https://{host(namespace)}:8443{push_path(namespace, job)}",
                "header": {"Authorization": [f"Bearer {token}"], "Content-Type": ["application/json"]},
                "body": base64.b64encode(json.dumps(body(step)).encode()).decode(),
            }


def body(step: int) -> Object:
    """As the callback of transformers 5.24 writes it."""
    metrics = {
        "loss": 4 / (step + 1),
        "grad_norm": 1.2,
        "learning_rate": 5e-5,
        "current_step": step,
        "total_steps": 100,
    }
    return {
        "trainerStatus": {
            "progressPercentage": step,
            "estimatedRemainingSeconds": PERIOD * (100 - step),
            "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
            "lastUpdatedTime": "2026-01-01T00:00:00Z",
        }
    }


def run(command: list[str], output: Path) -> tuple[Path, float]:
    """Its output, and the processor seconds that it took."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AssertionError(f"{command[0]} ended with {process.returncode}")
    return output, usage.ru_utime + usage.ru_stime


def report(results: Path) -> dict[str, Any]:
    command = [str(programs.program("vegeta")), "report", "-type=json", str(results)]
    return dict(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))


def rows(first: Volley, steady: Volley, memory: float) -> list[Row]:
    return [
        Row("first round, each token reviewed: not answered 200", first.sent - first.answered_200, limit=0, digits=0),
        Row("first round: 99th percentile", 1000 * first.p99, "ms", digits=1),
        Row("first round: TokenReviews", first.reviews, "/s", digits=0),
        Row("then: pushes", steady.sent, digits=0),
        Row("then: not answered 200", steady.sent - steady.answered_200, limit=0, digits=0),
        Row("then: median, handshake included", 1000 * steady.median, "ms", digits=1),
        Row("then: 99th percentile", 1000 * steady.p99, "ms", limit=50, digits=1),
        Row("then: worst", 1000 * steady.worst, "ms", digits=1),
        Row("then: operator's CPU, status writes included", steady.operator_cpu, "cores", limit=1),
        Row("then: generator's CPU", steady.generator_cpu, "cores"),
        Row(
            "then: status writes", steady.status_writes, "/s", limit=STATUS_BUDGET * (1 + 1 / steady.seconds), digits=1
        ),
        Row("then: TokenReviews", steady.reviews, "/s", digits=1),
        Row("operator's peak memory", memory, "MiB", limit=MEMORY, digits=0),
    ]
