"""What trainers on simulated pods would push: the step and where their time went, over the endpoint's HTTPS."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3

from cluster.kube import ApiError, Kube
from trainwright.contract import Progress, RoundEnd, rounds_on_wire
from trainwright_operator.api.names import LABEL_ATTEMPT, LABEL_JOB
from trainwright_operator.cluster.progress import audience, push_path

INDEX = "batch.kubernetes.io/job-completion-index"
SECRET, SERVICE = "trainwright-progress-tls", "trainwright-progress"
START_SECONDS, RESTORE_SECONDS, STEPS_A_SECOND, SAVE_EVERY = 3.0, 0.5, 10, 100
SHARES = {"stepping": 0.78, "data": 0.09, "evaluating": 0.06, "saving": 0.07}
"""Of the time after the start."""


class Endpoint:
    """The progress endpoint of the replica that leads, as a pod reaches it by the Service."""

    def __init__(self, kube: Kube, namespace: str, folder: Path) -> None:
        secret = kube.wait_for("Secret", SECRET, namespace, lambda obj: "ca.crt" in (obj.get("data") or {}))
        self._authority = folder / "ca.crt"
        self._authority.write_bytes(base64.b64decode(secret["data"]["ca.crt"]))
        self._kube, self._host = kube, f"{SERVICE}.{namespace}.svc"
        self._tokens: dict[str, str] = {}
        self.port, self.accepted = 0, 0

    def push(self, pod: dict[str, Any], body: dict[str, Any]) -> bool:
        meta = pod["metadata"]
        pool = urllib3.HTTPSConnectionPool(
            "127.0.0.1", self.port, ca_certs=str(self._authority), server_hostname=self._host,
            assert_hostname=self._host, retries=False, timeout=3,
        )  # fmt: skip
        path = push_path(meta["namespace"], meta["labels"][LABEL_JOB])
        headers = {"Authorization": f"Bearer {self._token(meta)}", "Content-Type": "application/json"}
        try:
            answer = pool.request("POST", path, body=json.dumps(body), headers=headers)
        except urllib3.exceptions.HTTPError:
            return False  # nobody leads at the moment
        finally:
            pool.close()
        self.accepted += answer.status == 200
        return bool(answer.status == 200)

    def _token(self, meta: dict[str, Any]) -> str:
        """Bound to the pod, as the kubelet would mount it."""
        if meta["name"] not in self._tokens:
            bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
            spec = {"audiences": [audience(meta["namespace"], meta["labels"][LABEL_JOB])], "boundObjectRef": bound}
            request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
            path = self._kube.path("ServiceAccount", meta["namespace"], "default", "token")
            self._tokens[meta["name"]] = self._kube.request("POST", path, request)["status"]["token"]
        return self._tokens[meta["name"]]


@dataclass
class Trainer:
    """Rank 0 of one job, over all attempts and rounds; ``slowest`` is told once it is set."""

    namespace: str
    name: str
    slowest: dict[str, float] | None = None
    first_step_seconds: float | None = None
    attempt: int = 0
    round: int = 1
    began: float = 0.0
    step: int = 0
    first: int = 0
    done: int = 0
    ended: list[RoundEnd] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    """By the former rounds of this attempt."""

    def tick(self, endpoint: Endpoint, kube: Kube) -> None:
        """Push what was reached by now."""
        try:
            pods = kube.list("Pod", self.namespace, f"{LABEL_JOB}={self.name}")
        except ApiError:
            return
        pod = newest_first_pod(pods)
        if pod is None:
            return
        if (attempt := int(pod["metadata"]["labels"][LABEL_ATTEMPT])) != self.attempt:
            self.attempt, self.round, self.ended, self.spent = attempt, 1, [], {}
            self._begin()
        progress = self._progress(time.monotonic() - self.began)
        accepted = endpoint.push(pod, progress.to_wire(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        if accepted and progress.step and self.first_step_seconds is None:
            self.first_step_seconds = kube_age(kube, self.namespace, self.name)

    def restart_in_place(self, endpoint: Endpoint, kube: Kube, node_rank: int) -> None:
        """A rank was killed, and the launchers have started all ranks anew."""
        pod = newest_first_pod(kube.list("Pod", self.namespace, f"{LABEL_JOB}={self.name}"))
        assert pod is not None
        error = f"rank {node_rank} was killed by SIGKILL"
        self.ended.append(RoundEnd(self.round, 137, time.time(), error, node_rank, node_rank, self.step))
        self.spent = self._clock(time.monotonic() - self.began)
        self.round += 1
        self._begin()
        assert endpoint.push(pod, rounds_on_wire(self.round, self.ended)), "the round was not accepted"

    def _begin(self) -> None:
        self.began, self.done = time.monotonic(), max(self.done, self.step)
        self.first = self.step = self.step - self.step % SAVE_EVERY

    def _progress(self, seconds: float) -> Progress:
        clock = self._clock(seconds)
        clock |= {"step": float(self.step), "first": float(self.first), "save": 0.8, "open": 0.0}
        return Progress(
            step=self.step, max_steps=5000, attempt=self.attempt, round=self.round, slowest=self.slowest or {},
            metrics={"loss": 8 / (1 + self.step / 200)}, clock=clock,
        )  # fmt: skip

    def _clock(self, seconds: float) -> dict[str, float]:
        """Seconds by cause in this attempt."""
        clock = {"starting": min(seconds, START_SECONDS)}
        left = seconds - clock["starting"]
        if self.first:
            clock["restoring"] = min(left, RESTORE_SECONDS)
            left -= clock["restoring"]
        self.step = self.first + int(left * STEPS_A_SECOND)
        again = min(left, max(0, self.done - self.first) / STEPS_A_SECOND)
        clock["redone"] = again
        clock |= {cause: share * (left - again) for cause, share in SHARES.items()}
        return {cause: round(clock.get(cause, 0) + self.spent.get(cause, 0), 3) for cause in {*clock, *self.spent}}


def newest_first_pod(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The running pod of rank 0 in the newest attempt."""
    running = [
        pod
        for pod in pods
        if pod["status"].get("phase") == "Running"
        and "deletionTimestamp" not in pod["metadata"]
        and pod["metadata"]["labels"].get(INDEX) == "0"
    ]
    return max(running, key=lambda pod: int(pod["metadata"]["labels"][LABEL_ATTEMPT]), default=None)


def kube_age(kube: Kube, namespace: str, name: str) -> float:
    created = kube.get("TrainingJob", name, namespace)["metadata"]["creationTimestamp"]
    return time.time() - datetime.fromisoformat(created).timestamp()
