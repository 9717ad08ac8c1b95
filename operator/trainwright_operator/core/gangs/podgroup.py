"""Kubernetes' own gangs: kube-scheduler places the pods of a ``scheduling.k8s.io`` PodGroup together or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.gangs.gang import Gang, GangScheduler, Kind, Membership


class PodGroup(GangScheduler):
    KIND: ClassVar[Kind | None] = Kind(
        "PodGroup", "podgroups", ("scheduling.k8s.io/v1beta1", "scheduling.k8s.io/v1alpha3")
    )

    def takes(self, job: TrainingJob, scheduler: str) -> bool:
        return not scheduler

    def membership(self, gang: Gang) -> Membership:
        """The group is disrupted as a whole, because an attempt that lost a pod is lost."""
        if gang.pods == 1:
            return Membership()
        priority_class = gang.job.spec.pod_template.priority_class_name
        group = {
            "apiVersion": self.version,
            "kind": "PodGroup",
            "metadata": gang.metadata,
            "spec": {
                "schedulingPolicy": {"gang": {"minCount": gang.least}},
                "disruptionMode": {"all": {}},
                **({"priorityClassName": priority_class} if priority_class else {}),
            },
        }
        return Membership((group,), pod_spec={"schedulingGroup": {"podGroupName": gang.metadata["name"]}})

    @classmethod
    def group_of(cls, template: Mapping[str, Any]) -> str | None:
        name = ((template.get("spec") or {}).get("schedulingGroup") or {}).get("podGroupName")
        return str(name) if name else None
