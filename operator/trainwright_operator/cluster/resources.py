"""The resources that the operator reads and writes, where they stand in the API.

What of them this cluster serves is asked once at the start: clusters differ in how they start gangs.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from trainwright_operator.api.names import API_VERSION, JOB_KIND, JOB_PLURAL, POOL_KIND, POOL_PLURAL
from trainwright_operator.cluster.client import Api, Resource
from trainwright_operator.core.gangs.podgroup import POD_GROUP, POD_GROUP_VERSIONS, Gangs

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


logger = logging.getLogger(__name__)


async def find_gangs(api: Api, timeout: float) -> Gangs:
    """With the newest version of PodGroup that is served and known here, or without one."""
    for version in POD_GROUP_VERSIONS:
        if POD_GROUP in await api.kinds(version):
            logger.info("gangs are started by the scheduler", extra={"podGroup": version})
            return Gangs(version, timedelta(seconds=timeout))
    logger.info("gangs are given up when only a part finds room", extra={"seconds": timeout})
    return Gangs(None, timedelta(seconds=timeout))
