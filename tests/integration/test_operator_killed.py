"""The operator is killed with -9 at one write after another of a job's life, and another process takes over.

However it went, the job ends in the same state with the same children, and no pod was ever made twice.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from builders import make_job
from cluster.kube import Kube
from cluster.simulated import FOREVER, RUN_FOR
from integration.operators import Operator
from integration.proxy import AFTER, BEFORE, Proxy, Which, proxied
from trainwright_operator.api.names import LABEL_ATTEMPT

pytestmark = pytest.mark.usefixtures("crds")

Object = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
KINDS = ("Job", "Service", "Pod", "ConfigMap")
PATIENCE = 90


def creates(plural: str, name: str) -> Which:
    return lambda verb, path, body: (
        verb == "POST" and path.endswith(f"/{plural}") and body["metadata"].get("name") == name
    )


def deletes(plural: str, name: str) -> Which:
    return lambda verb, path, body: verb == "DELETE" and path.endswith(f"/{plural}/{name}")


def writes(state: str, attempt: int) -> Which:
    """The status write by which an attempt (its last one, in what is written or was before) comes to a state."""

    def is_it(verb: str, path: str, body: Object) -> bool:
        nonlocal newest
        if verb != "PATCH" or not path.endswith("/trainingjobs/train/status"):
            return False
        attempts = body["status"].get("attempts")
        newest = attempts[-1]["attempt"] if attempts else newest
        return body["status"].get("state") == state and newest == attempt

    newest = 0
    return is_it


POINTS: dict[str, tuple[Which, str]] = {
    "before its Service is made": (creates("services", "tj-train"), BEFORE),
    "between its Service and its Job": (creates("services", "tj-train"), AFTER),
    "between its Job and its first status": (creates("jobs", "train-0-1"), AFTER),
    "when the first status is written": (writes("Starting", 1), AFTER),
    "before it is known to run": (writes("Running", 1), BEFORE),
    "before a failure is recorded": (writes("Restarting", 1), BEFORE),
    "between the record of a failure and the next attempt": (writes("Restarting", 1), AFTER),
    "between the second Job and its status": (creates("jobs", "train-0-2"), AFTER),
    "before a suspended Job is told to end": (deletes("jobs", "train-0-2"), BEFORE),
    "when a suspended Job was told to end": (deletes("jobs", "train-0-2"), AFTER),
    "before the suspension is recorded": (writes("Suspended", 2), BEFORE),
    "before the Job that resumes": (creates("jobs", "train-0-3"), BEFORE),
    "before success is recorded": (writes("Succeeded", 3), BEFORE),
    "when success is recorded": (writes("Succeeded", 3), AFTER),
    "amid the deletions of its time to live": (deletes("jobs", "train-0-1"), AFTER),
}


class Life:
    """One job from its manifest to the end of its time to live: a failure, a suspension, success."""

    def __init__(self, kube: Kube, namespace: str, operator: Operator, proxy: Proxy) -> None:
        self._kube, self._namespace, self._operator, self._proxy = kube, namespace, operator, proxy

    def lead(self) -> tuple[Object, Object]:
        """What is left when it has succeeded, and after its time to live."""
        job = make_job("train").nodes(2).with_("spec.podTemplate.metadata.annotations", {RUN_FOR: FOREVER})
        job = job.with_("spec.output", {"emptyDir": {}}).without("metadata.namespace").without("metadata.uid")
        self._kube.apply(job.manifest(), self._namespace)
        self._until("Running", 1)
        self._end_pods(1, exit_code=1, indexes=(1,))
        self._until("Running", 2)
        self._change({"suspend": True})
        self._until("Suspended", 2)
        self._change({"suspend": False})
        self._until("Running", 3)
        self._end_pods(3, exit_code=0)
        self._until("Succeeded", 3)
        finished = self._left()
        self._change({"ttlSecondsAfterFinished": 0})
        self._wait(lambda: not any(self._kube.list(kind, self._namespace) for kind in ("Job", "Service", "Pod")))
        told = [event["message"] for event in self._kube.list("Event", self._namespace)]
        pods = [_name(found[1]) for text in told if (found := re.fullmatch(r"Created pod: (\S+)", text))]
        assert sorted(pods) == [f"train-0-{attempt}-{index}" for attempt in (1, 2, 3) for index in (0, 1)]
        return finished, self._left()

    def _until(self, state: str, attempt: int) -> None:
        def reached() -> bool:
            status = self._kube.get("TrainingJob", "train", self._namespace).get("status") or {}
            last = (status.get("attempts") or [{"attempt": 0}])[-1]["attempt"]
            return (status.get("state"), last) == (state, attempt)

        self._wait(reached)

    def _wait(self, true) -> None:
        """Wait; a killed operator is replaced, as its Deployment would do."""
        for _ in range(PATIENCE * 10):
            if self._operator.process.poll() is not None:
                self._operator.again()
            if true():
                return
            time.sleep(0.1)
        seen = self._kube.get("TrainingJob", "train", self._namespace).get("status")
        raise AssertionError(f"not reached; last seen: {seen}\n{self._operator.log.read_text()[-2000:]}")

    def _change(self, spec: Object) -> None:
        self._kube.patch("TrainingJob", "train", {"spec": spec}, self._namespace)

    def _end_pods(self, attempt: int, exit_code: int, indexes: tuple[int, ...] = (0, 1)) -> None:
        """The kubelet's part: containers that end by themselves."""
        for pod in self._kube.list("Pod", self._namespace, f"{LABEL_ATTEMPT}={attempt}"):
            if int(pod["metadata"]["labels"][INDEX]) in indexes:
                ended = copy.deepcopy(pod["status"])
                ended["phase"] = "Failed" if exit_code else "Succeeded"
                (container,) = ended["containerStatuses"]
                end = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed"}
                end |= {"startedAt": ended["startTime"], "finishedAt": ended["startTime"]}
                container |= {"ready": False, "started": False, "state": {"terminated": end}}
                self._kube.patch("Pod", pod["metadata"]["name"], {"status": ended}, self._namespace, "status")

    def _left(self) -> Object:
        job = self._kube.get("TrainingJob", "train", self._namespace)
        children = {
            kind: sorted(_name(one["metadata"]["name"]) for one in self._kube.list(kind, self._namespace))
            for kind in KINDS
        }
        return normalised({"status": job["status"], "seconds unaccounted for": unaccounted(job), **children})


def _name(name: str) -> str:
    return re.sub(r"^(train-0-\d-\d)-\w{5}$", r"\1", name)


def normalised(value: Any) -> Any:
    """Without what differs from one run to the next: times, the random end of a pod's name, the node it was put on."""
    if isinstance(value, dict):
        fleeting = ("node", "ends", "observedGeneration", "goodput", "acceleratorSeconds")
        return {
            key: normalised(item)
            for key, item in value.items()
            if key not in fleeting and not key.lower().endswith("time")
        }
    if isinstance(value, list):
        return [normalised(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"node-\d", "NODE", re.sub(r"(train-0-\d-\d)-\w{5}", r"\1", value))
    return value


def unaccounted(job: Object) -> int:
    """The whole seconds by which the account of the job's life misses its length."""
    created, ended = (
        datetime.fromisoformat(time) for time in (job["metadata"]["creationTimestamp"], job["status"]["completionTime"])
    )
    return round(abs((ended - created).total_seconds() - sum(job["status"]["goodput"]["seconds"].values())))


@pytest.fixture
def life(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[tuple[Life, Operator, Proxy]]:
    with proxied(kube, tmp_path) as (proxy, through):
        operator = Operator(through, namespace, tmp_path).start().wait_leading()
        yield Life(kube, namespace, operator, proxy), operator, proxy
        operator.kill()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple[Object, Object]]:
    """What is left of a life in which nobody was killed, once the first test has told it."""
    return {}


def test_a_job_fails_stops_succeeds_and_expires_undisturbed(life, undisturbed) -> None:
    undisturbed["is"] = finished, expired = life[0].lead()
    assert [one["outcome"] for one in finished["status"]["attempts"]] == ["Failed", "Stopped", "Succeeded"]
    assert finished["status"]["restarts"] == {"total": 1, "counted": 1, "disruptions": 0}
    assert finished["seconds unaccounted for"] == 0
    assert finished["Job"] == ["train-0-1", "train-0-3"], "the suspended Job was deleted"
    assert expired == {**expired, "Job": [], "Pod": [], "Service": []}


@pytest.mark.parametrize("point", POINTS)
def test_an_operator_killed_at_any_point_changes_nothing_of_the_outcome(life, undisturbed, point: str) -> None:
    one, operator, proxy = life
    which, when = POINTS[point]
    proxy.kill_at(which, when, operator.kill)
    assert one.lead() == undisturbed["is"]
    assert proxy.struck.is_set(), "the point was never reached"
