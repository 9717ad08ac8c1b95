"""The resources that the operator reads and writes.

Which gang schedulers and queues a cluster has is discovered once at the start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from trainwright_operator.api.names import API_VERSION, JOB_KIND, JOB_PLURAL, POOL_KIND, POOL_PLURAL
from trainwright_operator.cluster.client import Api, ApiError, Resource
from trainwright_operator.core.gangs import SCHEDULERS, Gangs, GangScheduler, OneByOne
from trainwright_operator.core.queues import workload

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
NODES = Resource("v1", "Node", "nodes", namespaced=False)
SECRETS = Resource("v1", "Secret", "secrets")
WORKLOADS = Resource(workload.VERSION, workload.KIND, workload.PLURAL)
FLAVORS = Resource(workload.VERSION, "ResourceFlavor", "resourceflavors", namespaced=False)
QUEUE_PRIORITIES = Resource(workload.VERSION, "WorkloadPriorityClass", "workloadpriorityclasses", namespaced=False)
POD_PRIORITIES = Resource("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False)

QUEUED = (WORKLOADS, FLAVORS, QUEUE_PRIORITIES, POD_PRIORITIES)
"""Watched only where Kueue is followed."""

BY_KIND = {
    resource.kind: resource
    for resource in (TRAINING_JOBS, POOLS, JOBS, PODS, SERVICES, CONFIG_MAPS, CLAIM_TEMPLATES, WORKLOADS)
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


LOOK_AGAIN = 30.0
"""Seconds after which Kueue is looked for again, when a job in a queue is about to start without it."""


REMOVED = (
    f"this cluster does not serve {workload.VERSION} any more: install Kueue again, or remove the label of the queue "
    "to train without quota"
)


@dataclass(frozen=True)
class Queues:
    """Whether this operator follows Kueue.

    Attributes:
        trouble: Why it cannot, although it should; then jobs in a queue wait. Empty if they start without quota.
    """

    followed: bool = False
    trouble: str = ""
    wanted: bool = False
    """Whether Kueue is to be followed as soon as it is installed."""
    looked: float = 0.0
    """When it was looked for, on the monotonic clock."""

    @property
    def gone(self) -> Queues:
        """After Kueue's API was removed: jobs at work go on, those in a queue wait until it is back."""
        return replace(self, trouble=REMOVED, looked=time.monotonic())

    async def still(self, api: Api, lost: bool = False) -> Queues:
        """The same; but if Kueue was installed meanwhile, jobs in a queue have to wait for a new process.

        ``lost`` says that the Workload of an admitted job is gone: so may be the kind.
        """
        now = time.monotonic()
        if self.followed:
            if not (lost or self.trouble) or (self.trouble and now < self.looked + LOOK_AGAIN):
                return self
            served = workload.KIND in await api.kinds(workload.VERSION)
            return replace(self, trouble="" if served else REMOVED, looked=now)
        if self.trouble or not self.wanted or now < self.looked + LOOK_AGAIN:
            return self
        if workload.KIND not in await api.kinds(workload.VERSION):
            return replace(self, looked=now)
        return Queues(trouble="Kueue was installed after this operator started: restart the operator to follow it")


UNFOLLOWED = Queues()

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


def _of_another_version(served: Iterable[str]) -> str:
    return (
        f"the Kueue of this cluster serves {workload.GROUP} as {', '.join(served)}, and this operator needs "
        f"{workload.VERSION.partition('/')[2]}: install a Kueue that serves it (0.15 or newer), or another release of "
        "the operator, and restart the operator"
    )


async def find_queues(api: Api, wanted: str, namespaces: tuple[str, ...]) -> Queues:
    """Whether Kueue is followed: ``wanted`` is ``auto``, ``on`` or ``off``."""
    if wanted == "off":
        return UNFOLLOWED
    if workload.KIND not in await api.kinds(workload.VERSION):
        if others := await api.versions(workload.GROUP):
            return Queues(trouble=_of_another_version(others))
        missing = (
            f"this cluster does not serve {workload.VERSION}: install Kueue 0.15 or newer, and restart the operator"
        )
        return Queues(trouble=missing) if wanted == "on" else Queues(wanted=True, looked=time.monotonic())
    try:
        for resource in QUEUED:
            for namespace in (namespaces if resource.namespaced else ()) or (None,):
                await api.check_list(resource, namespace)
    except ApiError as error:
        if error.code != 403:
            raise
        logger.error("Kueue cannot be followed: %s", error.message)
        return Queues(trouble=f"the operator may not read what Kueue needs; upgrade the chart: {error.message}")
    logger.info("queues are followed", extra={"version": workload.VERSION})
    return Queues(followed=True)
