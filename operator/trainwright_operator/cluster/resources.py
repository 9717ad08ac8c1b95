"""The resources that the operator reads and writes, where they stand in the API."""

from __future__ import annotations

from trainwright_operator.api.names import API_VERSION, JOB_KIND, JOB_PLURAL, POOL_KIND, POOL_PLURAL
from trainwright_operator.cluster.client import Resource
from trainwright_operator.core.gangs.podgroup import POD_GROUP

TRAINING_JOBS = Resource(API_VERSION, JOB_KIND, JOB_PLURAL)
POOLS = Resource(API_VERSION, POOL_KIND, POOL_PLURAL, namespaced=False)
JOBS = Resource("batch/v1", "Job", "jobs")
PODS = Resource("v1", "Pod", "pods")
SERVICES = Resource("v1", "Service", "services")
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
EVENTS = Resource("events.k8s.io/v1", "Event", "events")
CORE_EVENTS = Resource("v1", "Event", "events")
"""The same Events under the older name, whose field selectors find those of one object."""
CLAIM_TEMPLATES = Resource("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates")
CLAIMS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRETS = Resource("v1", "Secret", "secrets")

BY_KIND = {
    resource.kind: resource for resource in (TRAINING_JOBS, POOLS, JOBS, PODS, SERVICES, CONFIG_MAPS, CLAIM_TEMPLATES)
}


def pod_groups(version: str) -> Resource:
    """PodGroup in the version of ``scheduling.k8s.io`` that this cluster serves."""
    return Resource(version, POD_GROUP, "podgroups")


_UNSERVED = {
    CLAIM_TEMPLATES.kind: ", which the pool's deviceClassName needs: choose a pool with a resourceName, or upgrade to "
    "Kubernetes 1.34 or newer",
    POD_GROUP: " any more: restart the operator, which looks when it starts",
}


def unserved(resource: Resource) -> str:
    """What a person is told of a kind that is not there."""
    told = f"this cluster does not serve {resource.kind} of {resource.api_version}"
    return told + _UNSERVED.get(resource.kind, "")
