"""A TrainingJob over time, with no cluster: plans are carried out on plain objects, and a test says what the pods do.

``Scene(make_job().nodes(2)).settle().start_pods().exit(1, 137).settle()`` reads like what happened.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from builders import JobBuilder, make_job
from trainwright_operator.api.spec import AcceleratorPool, TrainingJob
from trainwright_operator.core.leaving import Leaving
from trainwright_operator.core.observe import Observed, observe
from trainwright_operator.core.placement.pools import BUILTIN
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.pods import PushEndpoint
from trainwright_operator.core.status import merge_progress
from trainwright_operator.core.times import write_time
from trainwright_operator.local.objects import Objects

START = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)


class Scene:
    """``events``, ``applied`` and ``deleted`` collect what every plan so far asked for."""

    def __init__(self, job: JobBuilder, pool: AcceleratorPool | None = BUILTIN["cpu"]) -> None:
        self.builder, self.pool = job, pool
        self._memo: tuple[JobBuilder, TrainingJob] = (job, job.build())
        self.status: dict[str, Any] = {}
        self.objects = Objects("node-a")
        self.now = START
        self.events: list[str] = []
        self.applied: list[str] = []
        self.deleted: list[str] = []
        self.last: Plan | None = None
        self.endpoint: PushEndpoint | None = None
        self.services: frozenset[str] | None = None
        self.nodes: dict[str, Leaving] = {}

    @property
    def job(self) -> TrainingJob:
        return replace(self._built(), status=self.status)

    def _built(self) -> TrainingJob:
        if self._memo[0] is not self.builder:
            self._memo = (self.builder, self.builder.build())
        return self._memo[1]

    def observed(self) -> Observed:
        found = observe(self.job, self.objects.jobs.values(), self.objects.pods.values(), nodes=self.nodes)
        return replace(found, services=self.services)

    def plan(self) -> Plan:
        return plan(self.job, self.pool, self.observed(), self.now, self.endpoint)

    def step(self) -> Plan:
        """Plan once, and carry the plan out."""
        made = self.last = self.plan()
        self.objects.apply(made.apply, self.now)
        for deletion in made.delete:
            if deletion.kind == "Job":
                self.objects.delete_job(deletion.name, self.now)
        self.objects.sync(self.now)
        self.status = json.loads(json.dumps(made.status))
        self.applied += [child["metadata"]["name"] for child in made.apply]
        self.deleted += [f"{deletion.kind}/{deletion.name}" for deletion in made.delete]
        self.events += [f"{event.reason}: {event.message}" for event in made.events]
        return made

    def settle(self) -> Scene:
        """Plan until nothing changes at this moment."""
        for _ in range(20):
            before = json.dumps([self.status, self.objects.jobs, self.objects.pods], sort_keys=True)
            made = self.step()
            if before == json.dumps([self.status, self.objects.jobs, self.objects.pods], sort_keys=True):
                assert made.requeue_after != 0, "a plan that changes nothing asks to be made again at once"
                return self
        raise AssertionError(f"never settles: {made}")

    def wait(self, seconds: float) -> Scene:
        self.now += timedelta(seconds=seconds)
        return self

    def edit(self, path: str, value: Any) -> Scene:
        generation = self.builder.manifest()["metadata"]["generation"] + 1
        self.builder = self.builder.with_(path, value).with_("metadata.generation", generation)
        return self

    def pod(self, index: int = 0) -> dict[str, Any]:
        """The pod of that index in the newest attempt."""
        newest = max(self.objects.jobs, key=lambda name: int(name.rsplit("-", 1)[1]))
        return self.objects.pods[f"{newest}-{index}"]

    def start_pods(self) -> Scene:
        for name, pod in self.objects.pods.items():
            if pod["status"]["phase"] == "Pending":
                self.objects.started(name, self.now)
        return self

    def exit(self, index: int, code: int, **word: Any) -> Scene:
        """The trainer of a pod ends; ``word`` is its termination message."""
        message = json.dumps({"reason": "Error", "exit_code": code, **word}) if word else ""
        self.objects.ended(self.pod(index)["metadata"]["name"], code, message, self.now)
        return self

    def exit_all(self, code: int, **word: Any) -> Scene:
        for pod in list(self.objects.pods.values()):
            if pod["status"]["phase"] in ("Pending", "Running"):
                message = json.dumps({"reason": "x", "exit_code": code, **word}) if word else ""
                self.objects.ended(pod["metadata"]["name"], code, message, self.now)
        return self

    def evict(self, index: int, reason: str = "EvictionByEvictionAPI") -> Scene:
        return self.evict_pod(self.pod(index), reason)

    def evict_pod(self, pod: dict[str, Any], reason: str = "EvictionByEvictionAPI") -> Scene:
        """The cluster takes a pod away: it is marked, and told to end."""
        mark = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "evicted"}
        pod["status"].setdefault("conditions", []).append(mark)
        self._delete(pod)
        return self

    def delete_pod(self, index: int) -> Scene:
        self._delete(self.pod(index))
        return self

    def _delete(self, pod: dict[str, Any]) -> None:
        due = write_time(self.now + timedelta(seconds=30))
        pod["metadata"] |= {"deletionTimestamp": due, "deletionGracePeriodSeconds": 30}

    def push(self, attempt: int | None = None, **own: Any) -> Scene:
        body = {"trainerStatus": {}, "trainwright": own, **({"attempt": attempt} if attempt else {})}
        self.status = merge_progress(self.status, body, self.now)
        return self

    def condition(self, kind: str) -> dict[str, Any]:
        return next((one for one in self.status["conditions"] if one["type"] == kind), {})

    def holding(self) -> set[str]:
        return {one["type"] for one in self.status["conditions"] if one["status"] == "True"}

    @property
    def state(self) -> str:
        return str(self.status["state"])


def running(job: JobBuilder | None = None) -> Scene:
    """A job of two pods, or another one, at work for three seconds."""
    return Scene(job or make_job().nodes(2)).settle().start_pods().wait(3).settle()
