"""What the pods of a TPU slice are told and where they may run: libtpu's, TorchTPU's and MegaScale's variables, and one
node pool for each slice.

A worker's place in its slice is its completion index everywhere: in ``TPU_WORKER_ID``, in the order of
``TPU_WORKER_HOSTNAMES`` and in ``NODE_RANK``. TorchTPU would else derive the node rank from the chips' coordinates, and
a rank would then look for itself under another host's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainwright_operator.api import names
from trainwright_operator.api.topology import LABEL_NODE_POOL, Slice, axes
from trainwright_operator.core.observe import COMPLETION_INDEX
from trainwright_operator.core.placement.pools import TORCH_XLA, TORCHTPU, Placement

Object = dict[str, Any]

MEGASCALE_PORT = 8080
JOB_NAME = "batch.kubernetes.io/job-name"
"""The Job controller's label on every pod of a Job, which is to say of a slice in an attempt."""


@dataclass(frozen=True)
class Seat:
    """The slice of one Job: the names of its ``hosts`` in order, and of host 0 of slice 0, the ``first`` of all."""

    index: int
    hosts: tuple[str, ...]
    first: str
    session: str
    """The same for every pod of the attempt and for no other attempt."""


def environment(place: Placement, seat: Seat) -> list[Object]:
    """Nothing for a placement that is no TPU's."""
    if place.slice is None:
        return []
    own = {TORCHTPU: _torchtpu(place.slice, seat.session), TORCH_XLA: [_value("PJRT_DEVICE", "TPU")]}
    return [
        _index("TPU_WORKER_ID"),
        _value("TPU_WORKER_HOSTNAMES", ",".join(seat.hosts) if place.nodes > 1 else "localhost"),
        *own.get(place.launcher, []),
        *_megascale(place, seat),
    ]


def _torchtpu(shape: Slice, session: str) -> list[Object]:
    return [
        _index("JOB_COMPLETION_INDEX"),
        _index("NODE_RANK"),
        _value("TORCH_TPU_TOPOLOGY", mesh(shape)),
        _value("TORCH_TPU_XPROF_SESSION_ID", str(int(hashlib.sha256(session.encode()).hexdigest()[:15], 16))),
    ]


def mesh(shape: Slice) -> str:
    """The chips along x, y and z: ``4,4,1``; and where a chip shows several devices, how many: ``2,2,1,2``."""
    whole = (*axes(shape.topology), 1, 1)[:3]
    return ",".join(map(str, whole if shape.devices == 1 else (*whole, shape.devices)))


def _megascale(place: Placement, seat: Seat) -> list[Object]:
    """The port stands in the address too: libtpu would else put its own process's port there."""
    if place.slices == 1:
        return []
    return [
        _value("MEGASCALE_NUM_SLICES", str(place.slices)),
        _value("MEGASCALE_SLICE_ID", str(seat.index)),
        _value("MEGASCALE_COORDINATOR_ADDRESS", f"{seat.first}:{MEGASCALE_PORT}"),
        _value("MEGASCALE_PORT", str(MEGASCALE_PORT)),
    ]


def affinity(place: Placement, labels: Mapping[str, str], job_name: str) -> Object | None:
    """A slice of several hosts has a node pool to itself: its pods keep together, and all others out.

    A slice of one host needs nothing: the pod takes all of its chips.
    """
    if place.slice is None or place.nodes == 1:
        return None
    uid = labels[names.LABEL_JOB_UID]
    ours = [_expression(names.LABEL_JOB_UID, "In", uid), _expression(JOB_NAME, "NotIn", job_name)]
    others = [
        _expression(names.LABEL_JOB_UID, "Exists"),
        _expression(names.LABEL_SLICE, "Exists"),
        _expression(names.LABEL_JOB_UID, "NotIn", uid),
    ]
    return {
        "podAffinity": _required({"labelSelector": {"matchLabels": {JOB_NAME: job_name, names.LABEL_JOB_UID: uid}}}),
        "podAntiAffinity": _required(
            {"labelSelector": {"matchExpressions": ours}},
            {"labelSelector": {"matchExpressions": others}, "namespaceSelector": {}},
        ),
    }


def _required(*terms: Object) -> Object:
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": [{**term, "topologyKey": LABEL_NODE_POOL} for term in terms]
    }


def _expression(key: str, operator: str, *values: str) -> Object:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _value(name: str, value: str) -> Object:
    return {"name": name, "value": value}


def _index(name: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}}}
