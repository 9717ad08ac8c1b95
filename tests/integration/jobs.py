"""TrainingJobs whose pods are simulated, and the wait for what becomes of them."""

from __future__ import annotations

from builders import make_job
from cluster.simulated import RUN_FOR


def job(name="train", nodes=2, **annotations):
    """A TrainingJob whose pods end as the annotations say."""
    told = {f"simulated.trainwright.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    made = make_job().named(name).nodes(nodes).with_("spec.podTemplate.metadata.annotations", told)
    return made.with_("spec.output", {"emptyDir": {}}).without("metadata.namespace").without("metadata.uid")


def state(kube, namespace, wanted, name="train", seconds=90):
    return kube.wait_for(
        "TrainingJob",
        name,
        namespace,
        lambda obj: obj.get("status", {}).get("state") == wanted,
        seconds,
        f"to be {wanted}",
    )


def finish(kube, namespace, name="train"):
    """Let the pods of a job that would run forever end well."""
    for pod in kube.list("Pod", namespace, f"trainwright.dev/job={name}"):
        kube.patch("Pod", pod["metadata"]["name"], {"metadata": {"annotations": {RUN_FOR: "0s"}}}, namespace)
