"""A Kueue Workload as it was read: what it waits for, and with what it was admitted. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.core.times import read_time

Object = Mapping[str, Any]

GROUP = "kueue.x-k8s.io"
VERSION = f"{GROUP}/v1beta2"
"""Served by Kueue 0.15 and newer."""
LABEL_QUEUE = f"{GROUP}/queue-name"
KIND, PLURAL = "Workload", "workloads"
FINALIZER = f"{GROUP}/resource-in-use"
"""Keeps a deleted Workload, and its quota, until the pods that use it have ended."""

VISIBILITY = "visibility.kueue.x-k8s.io/v1beta2"
"""The API by which Kueue gives the places of the Workloads that wait; it says nothing of when one will start."""
FIRST_PLACES = 10
"""How many places of a ClusterQueue the status of jobs shows."""


class On:
    """Types of a Workload's conditions."""

    ADMITTED = "Admitted"
    EVICTED = "Evicted"
    FINISHED = "Finished"
    PODS_READY = "PodsReady"
    QUOTA_RESERVED = "QuotaReserved"
    REQUEUED = "Requeued"


@dataclass(frozen=True)
class Flavor:
    """A ResourceFlavor: the nodes whose quota it is.

    Attributes:
        node_labels: Labels that pods of this flavor select their nodes by.
        tolerations: Of the taints of its nodes.
    """

    node_labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()


def flavors_of(objects: Iterable[Object]) -> dict[str, Flavor]:
    """ResourceFlavor objects by name."""
    specs = {one["metadata"]["name"]: one.get("spec") or {} for one in objects}
    return {
        name: Flavor(spec.get("nodeLabels") or {}, tuple(spec.get("tolerations") or ())) for name, spec in specs.items()
    }


def priorities_of(objects: Iterable[Object]) -> dict[str, int]:
    """The values of WorkloadPriorityClass objects by name."""
    return {one["metadata"]["name"]: int(one.get("value") or 0) for one in objects}


@dataclass(frozen=True)
class Workload:
    """One Workload; ``stored`` is the object that patches are made from."""

    stored: Object

    @property
    def name(self) -> str:
        return str(self.stored["metadata"]["name"])

    @property
    def created(self) -> datetime | None:
        return read_time(self.stored["metadata"].get("creationTimestamp"))

    @property
    def digest(self) -> str | None:
        """The hash of what was planned when it was written."""
        return (self.stored["metadata"].get("annotations") or {}).get(names.ANNOTATION_HASH)

    @property
    def spec(self) -> Object:
        return self.stored.get("spec") or {}

    @property
    def status(self) -> Object:
        return self.stored.get("status") or {}

    @property
    def queue(self) -> str:
        """The LocalQueue that it is in."""
        return str(self.spec.get("queueName") or "")

    @property
    def active(self) -> bool:
        """False while a person, or Kueue after too many evictions, keeps it from being admitted."""
        return self.spec.get("active") is not False

    @property
    def deleting(self) -> bool:
        return "deletionTimestamp" in self.stored["metadata"]

    @property
    def finalized(self) -> bool:
        """Nothing of ours keeps it."""
        return FINALIZER not in (self.stored["metadata"].get("finalizers") or ())

    @property
    def conditions(self) -> list[Object]:
        return list(self.status.get("conditions") or ())

    def condition(self, kind: str) -> Object:
        """The condition of this type; empty if there is none."""
        return next((one for one in self.conditions if one["type"] == kind), {})

    def holds(self, kind: str) -> bool:
        return self.condition(kind).get("status") == "True"

    @property
    def admitted(self) -> bool:
        """Its pods may run: quota is reserved, and every admission check agreed."""
        return self.holds(On.ADMITTED) and self.active and not (self.evicted or self.deleting or self.finished)

    @property
    def evicted(self) -> bool:
        """Its pods must go."""
        return self.holds(On.EVICTED)

    @property
    def reserved(self) -> bool:
        """It holds quota."""
        return self.holds(On.QUOTA_RESERVED)

    @property
    def finished(self) -> bool:
        return self.holds(On.FINISHED)

    @property
    def admitted_at(self) -> datetime | None:
        return read_time(self.condition(On.ADMITTED).get("lastTransitionTime")) if self.holds(On.ADMITTED) else None

    @property
    def cluster_queue(self) -> str:
        """The ClusterQueue whose quota it holds; empty if it holds none."""
        return str((self.status.get("admission") or {}).get("clusterQueue") or "")

    @property
    def assignment(self) -> Object:
        """What its one pod set was admitted with; empty if it was not admitted."""
        found: Object = next(iter((self.status.get("admission") or {}).get("podSetAssignments") or ()), {})
        return found

    @property
    def flavors(self) -> list[str]:
        """The ResourceFlavors that its pods were given, each once."""
        return sorted(set((self.assignment.get("flavors") or {}).values()))

    @property
    def checks(self) -> list[Object]:
        """The admission checks of its ClusterQueue, with the state of each."""
        return list(self.status.get("admissionChecks") or ())


def places_path(namespace: str, queue: str) -> str:
    """Where the places of the Workloads in a LocalQueue are read."""
    return f"/apis/{VISIBILITY}/namespaces/{namespace}/localqueues/{queue}/pendingworkloads"


def places_of(items: Iterable[Object]) -> dict[str, tuple[int, int]]:
    """The places of Workloads by name, in their LocalQueue and in its ClusterQueue, each counted from 1."""
    return {
        one["metadata"]["name"]: (
            int(one.get("positionInLocalQueue") or 0) + 1,
            int(one.get("positionInClusterQueue") or 0) + 1,
        )
        for one in items
    }


def owned(objects: Iterable[Object], uid: str) -> Workload | None:
    """The Workload that the TrainingJob of this uid controls."""
    return next((Workload(one) for one in objects if owner(one) == uid), None)


def owner(stored: Object) -> str:
    """The uid of the controller of an object; empty if it has none."""
    owners = stored["metadata"].get("ownerReferences") or ()
    return next((str(one.get("uid")) for one in owners if one.get("controller")), "")
