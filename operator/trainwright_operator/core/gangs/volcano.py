"""Volcano: pods with ``schedulerName: volcano`` are placed together by a PodGroup of ``scheduling.volcano.sh``.

The queue is the label or annotation ``scheduling.volcano.sh/queue-name`` of the TrainingJob, by default Volcano's own
default queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.gangs.gang import Gang, GangScheduler, Kind, Membership

NAME = "volcano"
QUEUE = "scheduling.volcano.sh/queue-name"
GROUP = "scheduling.k8s.io/group-name"
"""The annotation by which a pod names its group."""


class Volcano(GangScheduler):
    KIND: ClassVar[Kind | None] = Kind("PodGroup", "podgroups", ("scheduling.volcano.sh/v1beta1",))

    def takes(self, job: TrainingJob, scheduler: str) -> bool:
        """A job whose pods name a group already brings that itself."""
        return scheduler == NAME and GROUP not in job.spec.pod_template.annotations

    def membership(self, gang: Gang) -> Membership:
        """Also for a single pod, whose queue stands in its group."""
        job = gang.job
        queue, priority = job.asked(QUEUE), job.spec.pod_template.priority_class_name
        group = {
            "apiVersion": self.version,
            "kind": "PodGroup",
            "metadata": gang.metadata,
            "spec": {
                "minMember": gang.least,
                **({"queue": queue} if queue else {}),
                **({"priorityClassName": priority} if priority else {}),
            },
        }
        return Membership((group,), annotations={GROUP: gang.metadata["name"]})

    @classmethod
    def group_of(cls, template: Mapping[str, Any]) -> str | None:
        name = ((template.get("metadata") or {}).get("annotations") or {}).get(GROUP)
        return str(name) if name and (template.get("spec") or {}).get("schedulerName") == NAME else None
