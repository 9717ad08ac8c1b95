"""The resources that the operator reads and writes.

Which of the gang schedulers a cluster has is discovered once at the start.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from trainwright_operator.api.names import API_VERSION, JOB_KIND, JOB_PLURAL, POOL_KIND, POOL_PLURAL
from trainwright_operator.cluster.client import Api, Resource
from trainwright_operator.core.gangs import SCHEDULERS, Gangs, GangScheduler, OneByOne

TRAINING_JOBS = Resource(API_VERSION, JOB_KIND, JOB_PLURAL)
POOLS = Resource(API_VERSION, POOL_KIND, POOL_PLURAL, namespaced=False)
JOBS = Resource("batch/v1", "Job", "jobs")
PODS = Resource("v1", "Pod", "pods")
SERVICES = Resource("v1", "Service", "services")
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
EVENTS = Resource("events.k8s.io/v1", "Event", "events")
CORE_EVENTS = Resource("v1", "Event", "events")
"""Events in core/v1, which has field selectors for the Events of one object."""
CLAIM_TEMPLATES = Resource("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates")
CLAIMS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRETS = Resource("v1", "Secret", "secrets")

BY_KIND = {
    resource.kind: resource for resource in (TRAINING_JOBS, POOLS, JOBS, PODS, SERVICES, CONFIG_MAPS, CLAIM_TEMPLATES)
}


def resource_of(api_version: str, kind: str, gangs: Gangs) -> Resource:
    """The resource of an object; for gang kinds in the version that this cluster serves."""
    served = {type(scheduler): scheduler.version for scheduler in gangs.schedulers}
    for scheduler in SCHEDULERS:
        known = scheduler.KIND
        if known and (known.group, known.kind) == (api_version.partition("/")[0], kind):
            return Resource(served.get(scheduler) or api_version, kind, known.plural)
    return BY_KIND[kind]


def unserved(resource: Resource) -> str:
    """The message about a kind that the cluster does not serve."""
    message = f"this cluster does not serve {resource.kind} of {resource.api_version}"
    if resource == CLAIM_TEMPLATES:
        return (
            f"{message}, which the pool's deviceClassName needs: choose a pool with a resourceName, or upgrade to "
            "Kubernetes 1.34 or newer"
        )
    if resource.kind not in BY_KIND:
        return f"{message} any more: restart the operator, which looks when it starts"
    return message


logger = logging.getLogger(__name__)


async def find_gangs(api: Api, timeout: float) -> Gangs:
    """The supported schedulers in this cluster, each in the latest version that both sides support."""
    patience = timedelta(seconds=timeout)
    found = [one for scheduler in SCHEDULERS if (one := await _find(api, scheduler, patience))]
    if not found:
        logger.info("gangs are given up when only a part finds room", extra={"seconds": timeout})
    return Gangs((*found, OneByOne(timeout=patience)))


async def _find(api: Api, scheduler: type[GangScheduler], patience: timedelta) -> GangScheduler | None:
    known = scheduler.KIND
    for version in known.versions if known else ():
        if known and known.kind in await api.kinds(version):
            logger.info("gangs are started by the scheduler", extra={"kind": known.kind, "version": version})
            return scheduler(version, patience)
    return None
