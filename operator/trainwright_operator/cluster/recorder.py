"""Kubernetes Events about a TrainingJob, which ``kubectl describe`` shows below it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from trainwright_operator.cluster.api import Object
from trainwright_operator.core.events import Event
from trainwright_operator.names import API_VERSION, FIELD_MANAGER, JOB_KIND

MAX_NOTE = 1024


def record(job: Object, event: Event, now: datetime, reporter: str) -> Object:
    """The ``events.k8s.io/v1`` object of ``event``; its note is cut to what the API takes."""
    meta = job["metadata"]
    namespace = meta.get("namespace", "default")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name'][:40]}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": reporter[:128],
        "action": event.reason,
        "reason": event.reason,
        "type": event.type,
        "note": event.message[:MAX_NOTE],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "name": meta["name"],
            "namespace": namespace,
            "uid": meta.get("uid", ""),
            "resourceVersion": meta.get("resourceVersion", ""),
        },
    }
