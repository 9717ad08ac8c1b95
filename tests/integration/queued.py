"""LocalQueues with quota, jobs in them, and what becomes of their Workloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.control_plane import ControlPlane
from cluster.kube import Kube, condition_of
from cluster.simulated import simulated_node
from integration.jobs import job

Object = dict[str, Any]
QUEUE = "kueue.x-k8s.io/queue-name"


def kueue_object(kind: str, name: str, spec: Object, where: str | None = None) -> Object:
    meta = {"name": name} | ({"namespace": where} if where else {})
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": meta, "spec": spec}


def team(kube: Kube, namespace: str, cpu: str, name: str = "team", nodes: Object | None = None, **spec: Any) -> str:
    """A LocalQueue with a ClusterQueue of its own that has ``cpu`` of quota; returns the latter's name.

    ``nodes`` is the spec of its ResourceFlavor.
    """
    flavor, cluster_queue = f"nodes-{namespace}", f"{name}-{namespace}"
    kube.apply(kueue_object("ResourceFlavor", flavor, nodes or {}))
    quota = {
        "coveredResources": ["cpu", "memory"],
        "flavors": [
            {
                "name": flavor,
                "resources": [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "1Ti"}],
            }
        ],
    }
    kube.apply(
        kueue_object("ClusterQueue", cluster_queue, {"namespaceSelector": {}, "resourceGroups": [quota], **spec})
    )
    kube.apply(kueue_object("LocalQueue", name, {"clusterQueue": cluster_queue}, namespace))
    return cluster_queue


def queued(name: str, queue: str = "team", nodes: int = 1, **annotations: str):
    """A TrainingJob of pods with one CPU each that waits in ``queue``."""
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}}
    made = job(name, nodes, **annotations).with_("spec.podTemplate.resources", resources)
    return made.with_("metadata.labels", {QUEUE: queue})


def priorities(kube: Kube, namespace: str, **values: int) -> dict[str, Object]:
    """The labels of a job in the queue ``team``, for each priority."""
    for name, value in values.items():
        made = kueue_object("WorkloadPriorityClass", f"{name}-{namespace}", {}) | {"value": value}
        kube.apply({key: part for key, part in made.items() if key != "spec"})
    return {name: {QUEUE: "team", "kueue.x-k8s.io/priority-class": f"{name}-{namespace}"} for name in values}


def racks(cluster: ControlPlane, kube: Kube, namespace: str, size: int) -> str:
    """Two racks of nodes with room for one pod each, and a queue ``racks`` over them; returns the label of a rack."""
    rack = f"rack.example.com/{namespace}"
    for index in range(2 * size):
        room = {"cpu": "1", "example.com/gpu": "1"}
        labels = {rack: f"r{index // size}", "racks": namespace}
        cluster.add_node(simulated_node(f"{namespace}-{index}", room, labels))
    levels = {"levels": [{"nodeLabel": rack}, {"nodeLabel": "kubernetes.io/hostname"}]}
    kube.apply(kueue_object("Topology", namespace, levels))
    nodes = {"nodeLabels": {"racks": namespace}, "topologyName": namespace}
    team(kube, namespace, cpu="9", name="racks", nodes=nodes)
    return rack


def racks_of(kube: Kube, namespace: str, rack: str, lost: str) -> set[str]:
    """The racks of a job of two pods, once both run and neither is on the node that was lost."""
    pods = kube.wait_list(
        "Pod",
        namespace,
        lambda found: (
            [pod["status"]["phase"] for pod in found] == ["Running"] * 2
            and all(pod["spec"]["nodeName"] != lost for pod in found)
        ),
        labels="trainwright.dev/job=train",
        what="to run on other nodes",
    )
    return {kube.get("Node", pod["spec"]["nodeName"], None)["metadata"]["labels"][rack] for pod in pods}


def workload_of(
    kube: Kube, namespace: str, name: str, until: Callable[[Object], object] = bool, what: str = "to exist"
) -> Object:
    """The Workload of a job, once ``until(workload)`` holds: it is written just before or after the job's status."""
    (found,) = kube.wait_list(
        "Workload",
        namespace,
        lambda found: len(found) == 1 and until(found[0]),
        labels=f"trainwright.dev/job={name}",
        what=what,
    )
    return found


def without_workload(kube: Kube, namespace: str, name: str = "") -> None:
    """Wait until a job, or every job, has no Workload."""
    label = f"trainwright.dev/job={name}" if name else ""
    kube.wait_list("Workload", namespace, lambda found: not found, labels=label, what="to be gone")


def says(kind: str, word: str) -> Callable[[Object], bool]:
    """Whether a condition has ``word`` as its status or its reason."""
    return lambda obj: word in (condition(obj, kind).get("status"), condition(obj, kind).get("reason"))


def condition(obj: Object, kind: str) -> Object:
    return next((one for one in obj.get("status", {}).get("conditions") or () if one["type"] == kind), {})


def reserved(obj: Object) -> bool:
    return condition_of(obj, "QuotaReserved") == "True"


def wait_queued(kube: Kube, namespace: str, name: str, words: str, seconds: float = 60) -> Object:
    return kube.wait_for(
        "TrainingJob",
        name,
        namespace,
        lambda obj: (
            words in condition(obj, "Queued").get("message", "") and condition(obj, "Queued")["status"] == "True"
        ),
        seconds,
        f"to be queued: {words}",
    )


def attempts(obj: Object) -> list[tuple[Any, ...]]:
    return [(one["attempt"], one.get("outcome"), one.get("reason")) for one in obj["status"]["attempts"]]
