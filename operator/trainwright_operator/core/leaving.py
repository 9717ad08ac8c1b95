"""Why a node takes its pods along, in words: its taints, and that it is gone.

A pod that is asked to stop may know nothing but the signal. Whoever takes the node away marks it: the cloud before its
maintenance, the autoscaler before it deletes the node.

Sources: the well-known taints of Kubernetes, GKE's page on disruptions of GPU and TPU nodes, and the documentation of
the cluster autoscaler, Karpenter and the AWS node termination handler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Leaving:
    """What a node says of its pods' end."""

    words: str
    takes_pods: bool
    """It explains a signal by itself. A node that is cordoned, or short of memory, only may."""


_TAKEN = {
    "cloud.google.com/impending-node-termination": "is taken by GKE, as for maintenance",
    "ToBeDeletedByClusterAutoscaler": "is removed by the cluster autoscaler",
    "karpenter.sh/disrupted": "is removed by Karpenter",
    "karpenter.sh/disruption": "is removed by Karpenter",
    "aws-node-termination-handler/spot-itn": "is a spot instance that EC2 takes back",
    "aws-node-termination-handler/scheduled-maintenance": "is taken by EC2 for maintenance",
    "aws-node-termination-handler/asg-lifecycle-termination": "is ended by its Auto Scaling group",
    "node.cloudprovider.kubernetes.io/shutdown": "was shut down",
    "node.kubernetes.io/out-of-service": "is out of service",
    "node.kubernetes.io/unreachable": "does not answer",
}
_IMPAIRED = {
    "node.kubernetes.io/not-ready": "is not ready",
    "node.kubernetes.io/memory-pressure": "is short of memory",
    "node.kubernetes.io/disk-pressure": "is short of disk space",
    "node.kubernetes.io/pid-pressure": "is short of process IDs",
    "node.kubernetes.io/unschedulable": "is cordoned, as by kubectl drain",
}
GONE = Leaving("is gone", takes_pods=True)
"""Of a node that the API server does not have any more."""


def leaving(node: Object) -> Leaving | None:
    """What the node's taints say of the end of a pod on it; the first in the order of the tables above counts."""
    taints = {taint.get("key") for taint in (node.get("spec") or {}).get("taints") or ()}
    for table in (_TAKEN, _IMPAIRED):
        for key, words in table.items():
            if key in taints:
                return Leaving(words, takes_pods=table is _TAKEN)
    return None


def node_of_disruption(before: Object, planned: Object) -> str | None:
    """The node to look at: of the pod that disrupted the newest attempt, if that was not known before."""
    entry = _newest(planned)
    if entry.get("outcome") != "Disrupted" or not entry.get("node"):
        return None
    known = _newest(before)
    same = ("attempt", "reason", "pod", "node")
    if known.get("outcome") and all(known.get(key) == entry.get(key) for key in same):
        return None
    return str(entry["node"])


def _newest(status: Object) -> Object:
    attempts = status.get("attempts") or [{}]
    newest: Object = attempts[-1]
    return newest
