"""A minimal Job controller without a cluster: Jobs and pods as an API server would store them.

The policy sees the same objects as in a cluster, so it makes the same decisions. Nothing here runs processes: the
runner, or a test, reports what each pod does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.core.observe import COMPLETION_INDEX
from trainwright_operator.core.times import write_time

Object = dict[str, Any]


class Objects:
    """``jobs`` and ``pods`` by name. The caller passes times; ``revision`` counts changes by :meth:`sync`."""

    def __init__(self, node: str = "local") -> None:
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.revision = 0
        self._node = node

    def apply(self, children: Iterable[Object], now: datetime) -> None:
        for child in children:
            name = child["metadata"]["name"]
            if child["kind"] != "Job" or name in self.jobs:
                continue
            job = copy.deepcopy(child)
            job["metadata"] |= {"uid": f"job-{name}", "creationTimestamp": write_time(now)}
            job["status"] = {"active": job["spec"]["completions"], "startTime": write_time(now)}
            self.jobs[name] = job
            self.pods |= {pod["metadata"]["name"]: pod for pod in _pods(job, now)}

    def delete_job(self, name: str, now: datetime) -> None:
        """Foreground deletion: the Job remains until its pods have ended."""
        if job := self.jobs.get(name):
            job["metadata"].setdefault("deletionTimestamp", write_time(now))

    def started(self, name: str, now: datetime) -> None:
        pod = self.pods[name]
        pod["spec"]["nodeName"] = self._node
        running = {"startedAt": write_time(now)}
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": names.CONTAINER, "ready": True, "state": {"running": running}}],
        }

    def ended(self, name: str, exit_code: int, message: str, now: datetime) -> None:
        """``exit_code`` as in a shell: 128 plus the signal number if a signal killed the process."""
        reason = "Completed" if exit_code == 0 else "Error"
        state = {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": write_time(now)}
        self.pods[name]["status"] = {
            "phase": "Succeeded" if exit_code == 0 else "Failed",
            "conditions": [{"type": "Ready", "status": "False", "reason": "PodFailed"}],
            "containerStatuses": [{"name": names.CONTAINER, "ready": False, "state": {"terminated": state}}],
        }

    def sync(self, now: datetime) -> list[str]:
        """Update Jobs and pods as the Job controller would; returns the names of pods to terminate now."""
        terminated: list[str] = []
        for job in list(self.jobs.values()):
            pods = list(self.pods_of(job))
            deleting = "deletionTimestamp" in job["metadata"]
            if not deleting and any(map(_lost, pods)) and not _has(job, "FailureTarget"):
                self._add(job, "FailureTarget", "BackoffLimitExceeded", now)
            failed = _has(job, "FailureTarget")
            alive = [pod for pod in pods if not _ended(pod)]
            if failed or deleting:
                terminated += [pod["metadata"]["name"] for pod in alive if _terminate(pod, now)]
            if not alive:
                self._finish(job, failed, now)
        self.revision += bool(terminated)
        return terminated

    def pods_of(self, job: Object) -> Iterator[Object]:
        uid = job["metadata"]["uid"]
        return (pod for pod in self.pods.values() if _owner(pod) == uid)

    def _finish(self, job: Object, failed: bool, now: datetime) -> None:
        if "deletionTimestamp" in job["metadata"]:
            for pod in list(self.pods_of(job)):
                del self.pods[pod["metadata"]["name"]]
            del self.jobs[job["metadata"]["name"]]
            self.revision += 1
        elif failed and not _has(job, "Failed"):
            self._add(job, "Failed", "BackoffLimitExceeded", now)
        elif not failed and not _has(job, "Complete"):
            self._add(job, "SuccessCriteriaMet", "CompletionsReached", now)
            self._add(job, "Complete", "CompletionsReached", now)

    def _add(self, job: Object, condition: str, reason: str, now: datetime) -> None:
        entry = {"type": condition, "status": "True", "reason": reason, "lastTransitionTime": write_time(now)}
        job["status"].setdefault("conditions", []).append(entry)
        job["status"]["active"] = 0
        self.revision += 1


def _owner(pod: Object) -> str | None:
    owners = pod["metadata"].get("ownerReferences") or [{}]
    uid: str | None = owners[0].get("uid")
    return uid


def _pods(job: Object, now: datetime) -> Iterator[Object]:
    template = job["spec"]["template"]
    for index in range(job["spec"]["completions"]):
        pod = copy.deepcopy(template)
        name = f"{job['metadata']['name']}-{index}"
        pod |= {"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Pending"}}
        pod["metadata"] |= {
            "name": name,
            "namespace": job["metadata"]["namespace"],
            "creationTimestamp": write_time(now),
            "ownerReferences": [
                {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
            ],
        }
        pod["metadata"]["annotations"] |= {COMPLETION_INDEX: str(index)}
        yield pod


def _terminate(pod: Object, now: datetime) -> bool:
    """Mark a pod as being deleted; False when it already is."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    pod["metadata"]["deletionTimestamp"] = write_time(now + timedelta(seconds=grace))
    pod["metadata"]["deletionGracePeriodSeconds"] = grace
    return True


def _lost(pod: Object) -> bool:
    """A pod that is being deleted counts as failed immediately, even if its process then exits with 0."""
    return pod["status"]["phase"] == "Failed" or ("deletionTimestamp" in pod["metadata"] and not _ended(pod))


def _ended(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def _has(job: Object, condition: str) -> bool:
    return any(one["type"] == condition for one in job["status"].get("conditions", ()))
