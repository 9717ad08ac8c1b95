"""What runs in a pod beside the trainer: sidecars and init containers of the job's own.

They fit the restricted Pod Security Standard as the trainer does, whatever their images are.
"""

from __future__ import annotations

from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.placement.pools import Placement

Object = dict[str, Any]


def beside(job: TrainingJob, place: Placement) -> list[Object]:
    """Sidecars first, which an init container may need; Kubernetes calls both init containers."""
    template = job.spec.pod_template
    return [
        *({**_container(job, place, one), "restartPolicy": "Always"} for one in template.sidecars),
        *(_container(job, place, one) for one in template.init_containers),
    ]


def folder_of_output(job: TrainingJob) -> Object:
    """Where in the output's volume the job's own folder is."""
    output = job.spec.output
    return {} if "emptyDir" in output.volume else {"subPath": output.sub_path}


def _container(job: TrainingJob, place: Placement, stated: Object) -> Object:
    mounts = [_mount(job, one) for one in stated.get("volumeMounts") or ()]
    return {
        "image": place.image,
        **stated,
        **({"volumeMounts": mounts} if mounts else {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "runAsNonRoot": True,
            **(stated.get("securityContext") or {}),
        },
    }


def _mount(job: TrainingJob, stated: Object) -> Object:
    return {**folder_of_output(job), **stated} if stated["name"] == names.VOLUME_OUTPUT else stated
