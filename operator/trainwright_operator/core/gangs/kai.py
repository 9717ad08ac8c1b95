"""The KAI scheduler: pods with ``schedulerName: kai-scheduler`` are placed together by a PodGroup of
``scheduling.run.ai``.

The queue is the label ``kai.scheduler/queue`` of the TrainingJob. KAI's own pod-grouper groups pods by their owners and
would give each pod of a Job a group of its own, so it has to leave these pods alone: see docs/pools.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.gangs.gang import Gang, GangScheduler, Kind, Membership

NAME = "kai-scheduler"
QUEUE = "kai.scheduler/queue"
GROUP = "pod-group-name"
"""The annotation by which a pod names its group."""


class Kai(GangScheduler):
    KIND: ClassVar[Kind | None] = Kind("PodGroup", "podgroups", ("scheduling.run.ai/v2alpha2",))

    def takes(self, job: TrainingJob, scheduler: str) -> bool:
        """A job whose pods name a group already brings that itself."""
        return scheduler == NAME and GROUP not in job.spec.pod_template.annotations

    def membership(self, gang: Gang) -> Membership:
        """Also for a single pod, which KAI places by its group alone."""
        job = gang.job
        queue, priority = job.asked(QUEUE), job.spec.pod_template.priority_class_name
        label = {QUEUE: queue} if queue else {}
        group = {
            "apiVersion": self.version,
            "kind": "PodGroup",
            "metadata": {**gang.metadata, "labels": {**gang.metadata["labels"], **label}},
            "spec": {
                "minMember": gang.least,
                **({"queue": queue} if queue else {}),
                **({"priorityClassName": priority} if priority else {}),
            },
        }
        return Membership((group,), labels=label, annotations={GROUP: gang.metadata["name"]})

    @classmethod
    def group_of(cls, template: Mapping[str, Any]) -> str | None:
        name = ((template.get("metadata") or {}).get("annotations") or {}).get(GROUP)
        return str(name) if name and (template.get("spec") or {}).get("schedulerName") == NAME else None
