"""``metadata``: what the CRDs restrict (the name), and what ``validate`` checks like the API server itself."""

from __future__ import annotations

from typing import Any

from trainwright_operator.api import formats, names
from trainwright_operator.api.types import INT64_MAX, Rule, Schema, free, integer, list_of, map_of, record, string

JOB_NAME = string(
    "The job's name. Pods are named <name>-<slice>-<attempt>-<index>; a host name has at most 63 characters.",
    names.MAX_NAME_LENGTH,
    pattern=formats.HOST_LABEL,
)
POOL_NAME = string("The pool's name.", 253, pattern=formats.SUBDOMAIN)


def in_crd(name: Schema) -> Schema:
    """The part of metadata that a CRD may restrict."""
    return {"type": "object", "properties": {"name": name}}


def in_manifest(name: Schema, *, namespaced: bool) -> Schema:
    fields = {
        "name": name,
        "generateName": string("Prefix of a generated name.", 35, pattern=formats.HOST_BEGINNING),
        "labels": map_of("Labels.", string("A value.", 63, pattern=formats.LABEL_VALUE), 4096),
        "annotations": map_of("Annotations.", string("A value.", 262144), 4096),
        "finalizers": list_of("Finalizers.", string("A finalizer."), 64),
        "ownerReferences": list_of("Owners.", free("An owner."), 64),
        **_written_by_server(),
    }
    if namespaced:
        fields["namespace"] = string("The namespace.", 63, least=1, pattern=formats.LABEL)
    return record("Name, labels and annotations.", fields, rules=[_named()])


def _written_by_server() -> dict[str, Schema]:
    """Fields that the API server writes; a manifest exported from a cluster has them."""
    texts = ("uid", "resourceVersion", "selfLink", "creationTimestamp", "deletionTimestamp")
    numbers = ("generation", "deletionGracePeriodSeconds")
    return {
        **{name: string("Written by the API server.", 1024) for name in texts},
        **{name: integer("Written by the API server.", 0, INT64_MAX) for name in numbers},
        "managedFields": list_of("Written by the API server.", free("An entry."), 1000),
    }


def _named() -> Rule:
    def holds(metadata: dict[str, Any]) -> bool:
        return bool(metadata.get("name") or metadata.get("generateName"))

    return Rule(
        "has(self.name) || has(self.generateName)", "is missing; give the object a name", holds, field="name", needs=()
    )
