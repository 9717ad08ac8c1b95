"""Simulated nodes, and what becomes of the pods on them.

A pod on such a node runs as soon as it is scheduled. One of a Job ends by itself: after ``RUN_FOR`` (0 when absent;
``forever`` runs until it is deleted), with the exit code ``EXIT_CODE`` (0) and the termination message ``MESSAGE``. All
three are annotations, so that they ride in a Job's pod template.
"""

from __future__ import annotations

from typing import Any

RUN_FOR = "simulated.trainwright.dev/run-for"
EXIT_CODE = "simulated.trainwright.dev/exit-code"
MESSAGE = "simulated.trainwright.dev/message"
FOREVER = "forever"


def simulated_node(
    name: str, resources: dict[str, str] | None = None, labels: dict[str, str] | None = None, taint: str | None = None
) -> dict[str, Any]:
    """A Node object for kwok. ``resources`` come on top of 64 CPUs and 256 GiB; ``taint`` is a key of NoSchedule.

    >>> simulated_node("gpu-0", {"nvidia.com/gpu": "8"}, {"nvidia.com/gpu.product": "H100"}, taint="nvidia.com/gpu")
    """
    room = {"cpu": "64", "memory": "256Gi", "pods": "500", **(resources or {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})},
        },
        "spec": {"taints": [{"key": taint, "value": "present", "effect": "NoSchedule"}] if taint else []},
        "status": {"allocatable": room, "capacity": room},
    }


ACCELERATORS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "h100": (
        {"nvidia.com/gpu": "8", "rdma/ib": "8"},
        {
            "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
            "nvidia.com/gpu.count": "8",
            "nvidia.com/gpu.present": "true",
            "nvidia.com/mig.strategy": "single",
        },
        "nvidia.com/gpu",
    ),
    "h100-gke": (
        {"nvidia.com/gpu": "8"},
        {"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb", "cloud.google.com/gke-accelerator-count": "8"},
        "nvidia.com/gpu",
    ),
    "a100-mig": (
        {"nvidia.com/mig-1g.10gb": "7"},
        {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/mig.strategy": "mixed"},
        "nvidia.com/gpu",
    ),
    "mi300x": (
        {"amd.com/gpu": "8"},
        {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.family": "AI", "amd.com/gpu.vram": "192G"},
        "amd.com/gpu",
    ),
    "mi300x-cpx": ({"amd.com/cpx_nps4": "64"}, {"amd.com/gpu.family": "AI"}, "amd.com/gpu"),
    "v5e-8": (
        {"google.com/tpu": "8"},
        {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "2x4",
            "cloud.google.com/gke-accelerator-count": "8",
        },
        "google.com/tpu",
    ),
    "v6e-16": (
        {"google.com/tpu": "4"},
        {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
            "cloud.google.com/gke-tpu-topology": "4x4",
            "cloud.google.com/gke-accelerator-count": "4",
        },
        "google.com/tpu",
    ),
}
"""Machines as their vendors' tools describe them to Kubernetes: resources, labels, and the key of the taint."""


def accelerator_node(name: str, machine: str, node_pool: str | None = None) -> dict[str, Any]:
    """A simulated node that is one of :data:`ACCELERATORS`; on GKE it belongs to a node pool.

    >>> accelerator_node("tpu-0", "v6e-16", node_pool="slice-a")
    """
    resources, labels, taint = ACCELERATORS[machine]
    pool = {"cloud.google.com/gke-nodepool": node_pool} if node_pool else {}
    return simulated_node(name, resources, {**labels, **pool}, taint)


STAGES = """\
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      conditions:
      {{ range NodeConditions }}
      - {type: {{ .type | Quote }}, status: {{ .status | Quote }}, reason: {{ .reason | Quote }},
         message: {{ .message | Quote }}, lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $now | Quote }}}
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-running}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: '.metadata.deletionTimestamp', operator: DoesNotExist}
    - {key: '.status.phase', operator: In, values: [Pending]}
    - {key: '.spec.nodeName', operator: Exists}
  next:
    statusTemplate: |
      {{ $now := Now }}
      phase: Running
      startTime: {{ $now | Quote }}
      conditions:
      {{ range $type := list "Initialized" "Ready" "ContainersReady" }}
      - {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
      {{ end }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        imageID: ""
        ready: true
        started: true
        restartCount: 0
        state: {running: {startedAt: {{ $now | Quote }}}}
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-ended}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: '.metadata.deletionTimestamp', operator: DoesNotExist}
    - {key: '.status.phase', operator: In, values: [Running]}
    - {key: '.metadata.ownerReferences.[].kind', operator: In, values: [Job]}
    - {key: '.metadata.annotations["@RUN_FOR@"]', operator: NotIn, values: [@FOREVER@]}
  delay:
    durationMilliseconds: 0
    durationFrom: {expressionFrom: '.metadata.annotations["@RUN_FOR@"]'}
  next:
    statusTemplate: |
      {{ $now := Now }}
      {{ $root := . }}
      {{ $annotations := or .metadata.annotations dict }}
      {{ $code := or ( index $annotations "@EXIT_CODE@" ) "0" }}
      {{ $message := or ( index $annotations "@MESSAGE@" ) "" }}
      phase: {{ if eq $code "0" }}Succeeded{{ else }}Failed{{ end }}
      conditions:
      {{ range $type := list "Ready" "ContainersReady" }}
      - {type: {{ $type }}, status: "False", lastTransitionTime: {{ $now | Quote }},
         reason: {{ if eq $code "0" }}PodCompleted{{ else }}PodFailed{{ end }}}
      {{ end }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        imageID: ""
        ready: false
        started: false
        restartCount: 0
        state:
          terminated:
            exitCode: {{ $code }}
            reason: {{ if eq $code "0" }}Completed{{ else }}Error{{ end }}
            message: {{ $message | Quote }}
            startedAt: {{ $root.status.startTime | Quote }}
            finishedAt: {{ $now | Quote }}
      {{ end }}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-gone}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: '.metadata.deletionTimestamp', operator: Exists}
    - {key: '.spec.nodeName', operator: Exists}
  next:
    delete: true
"""
for _name, _value in {"RUN_FOR": RUN_FOR, "EXIT_CODE": EXIT_CODE, "MESSAGE": MESSAGE, "FOREVER": FOREVER}.items():
    STAGES = STAGES.replace(f"@{_name}@", _value)
