"""The shell around the plan: read the state from the cache, plan, execute, and write the status once at the end.

Nothing is decided here. A refusal by the API server is reported in the status and retried later; other failures are
retried with the queue's backoff.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from trainwright_operator.api.names import LABEL_JOB_UID, Reason
from trainwright_operator.api.spec import AcceleratorPool, SpecError, TrainingJob
from trainwright_operator.cluster.cache import ObjectKey
from trainwright_operator.cluster.client import Api, ApiError, Object
from trainwright_operator.cluster.events_reader import Warnings
from trainwright_operator.cluster.informer import Stores
from trainwright_operator.cluster.job_parser import JobParser
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.patches import can_wait, merge_patch, only_counts_pods
from trainwright_operator.cluster.rate_limit import Pace
from trainwright_operator.cluster.recorder import Recorder
from trainwright_operator.cluster.resources import (
    CLAIMS,
    JOBS,
    NODES,
    SERVICES,
    TRAINING_JOBS,
    UNFOLLOWED,
    WORKLOADS,
    Queues,
    resource_of,
    unserved,
)
from trainwright_operator.cluster.settings import Settings
from trainwright_operator.core.claims import output_claim, unshared
from trainwright_operator.core.cleanup import Delete
from trainwright_operator.core.gangs import ONE_BY_ONE, Gangs
from trainwright_operator.core.leaving import GONE, Leaving, leaving, node_of_disruption
from trainwright_operator.core.observe import Observed, observe
from trainwright_operator.core.placement.pools import choose, image_of
from trainwright_operator.core.plan import Plan, plan
from trainwright_operator.core.pods import PushEndpoint
from trainwright_operator.core.progress import keep_rounds, merge_progress
from trainwright_operator.core.queues import kueue, multikueue
from trainwright_operator.core.queues.workload import Workload, owner
from trainwright_operator.core.setbacks import deletion_blocked, name_conflict, refused, unreadable
from trainwright_operator.core.times import read_time
from trainwright_operator.core.waiting import silent

REFUSED_AGAIN = 30.0
"""Seconds until a retry after the API server refused something (a quota, an admission webhook)."""
EXPLAINED_AGAIN = 15.0
"""Seconds until the Events of a waiting job are read again."""
UNEXPLAINED_AGAIN = 1.0
"""The same while there are none; a kubelet takes a second or two to report what is missing."""
UNEXPLAINED_FOR = timedelta(seconds=5)
"""After this time without Events the job is only slow."""
STARTING_SECONDS = 2.0
"""How long the first attempt of a job in a queue may take to be ready before the status says that it starts."""
GANG_SECONDS = 3.0
"""How long a change of only the ready pods waits for the rest of the gang."""

logger = logging.getLogger(__name__)


class NameConflict(Exception):
    """An object with the name of a child has another owner."""

    def __init__(self, child: str, owner: str) -> None:
        super().__init__(f"{child} belongs to {owner}")
        self.child, self.owner = child, owner


class Unserved(Exception):
    """The cluster does not serve the kind of a child."""


@dataclass
class PendingPush:
    """The latest push of a job's trainer that is not in its status yet."""

    push: dict[str, Any]
    received: datetime


class Reconciler:
    """``reconcile`` executes the plan of one TrainingJob; keeps parsed specs, and pushes that are not written yet."""

    def __init__(
        self,
        api: Api,
        stores: Stores,
        settings: Settings,
        metrics: Metrics,
        recorder: Recorder,
        now: Callable[[], datetime],
        endpoint: Callable[[ObjectKey], PushEndpoint | None] = lambda key: None,
        gangs: Gangs = ONE_BY_ONE,
        queues: Queues = UNFOLLOWED,
        places: Callable[[str, str], int | None] = lambda namespace, workload: None,
    ) -> None:
        self._api, self._stores, self._settings = api, stores, settings
        self._metrics, self._recorder = metrics, recorder
        self._now, self._endpoint, self._gangs, self._queues = now, endpoint, gangs, queues
        self._places = places
        self._warnings = Warnings(api)
        self._parser = JobParser()
        self._pushes: dict[ObjectKey, PendingPush] = {}
        self._pace: Pace[ObjectKey] = Pace(settings.status_interval, settings.status_budget)

    def keep_progress(self, key: ObjectKey, push: dict[str, Any]) -> float:
        """Keep a push until the next status write; returns the seconds until that is allowed."""
        now = self._now()
        if pending := self._pushes.get(key):
            push = keep_rounds(push, pending.push)
        self._pushes[key] = PendingPush(push, now)
        return self._pace.wait(key, now)

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Execute the plan for ``key``; returns the seconds until the next reconcile, None to wait for a change."""
        stored = self._stores.training_jobs.get(key)
        await self._release_workloads(key, stored)
        if stored is None:
            self._forget(key)
            self._parser.forget(key)
            return None
        now = self._now()
        pending = self._pushes.get(key)
        try:
            job = self._with_push(self._of_origin(key, self._bearing(self._parser.parse(stored))), pending)
        except SpecError as error:
            planned = unreadable(stored, str(error), self._stores.jobs.group(key), self._stores.pods.group(key), now)
        else:
            planned = await self._planned(key, job, now)
        again = await self._write(key, stored, planned, now)
        if again is None and self._pushes.get(key) is pending:
            self._pushes.pop(key, None)
        return _soonest(planned.requeue_after, again)

    def _bearing(self, job: TrainingJob) -> TrainingJob:
        chosen = {name: job.labels[name] for name in self._settings.propagate_labels if name in job.labels}
        return replace(job, propagated=chosen) if chosen else job

    def _of_origin(self, key: ObjectKey, job: TrainingJob) -> TrainingJob:
        return kueue.of_origin(job, self._workload(key, job)) if kueue.prebuilt(job) else job

    def _with_push(self, job: TrainingJob, pending: PendingPush | None) -> TrainingJob:
        return replace(job, status=merge_progress(job.status, pending.push, pending.received)) if pending else job

    async def _planned(self, key: ObjectKey, job: TrainingJob, now: datetime) -> Plan:
        """The plan after creating and deleting children; or a plan that reports why that was refused."""
        observed, explained_in = await self._observed(key, job, now)
        if kueue.queue_of(job):
            lost = self._workload(key, job) is None and observed.admitted
            self._queues = await self._queues.still(self._api, lost)
        planned = self._plan(key, job, observed, now)
        if nodes := await self._leaving(job, planned):
            observed = self._observe(key, job, nodes=nodes)
            planned = self._plan(key, job, observed, now)
        try:
            if message := await self._unshared(job, planned):
                return refused(job, observed, now, Reason.OUTPUT_NOT_SHARED, message, REFUSED_AGAIN)
            for child in planned.apply:
                await self._create(child, job)
            await self._follow(key, job, planned.queue)
            obstacles = [message for gone in planned.delete if (message := await self._delete(gone, job))]
            for child in planned.probe:
                await self._try_to_create(child, job)
            obstacles += [message for lost in planned.restore if (message := await self._restore(lost, job))]
        except NameConflict as error:
            return name_conflict(job, observed, now, error.child, error.owner, REFUSED_AGAIN)
        except Unserved as error:
            return refused(job, observed, now, Reason.REFUSED, str(error), REFUSED_AGAIN)
        except ApiError as error:
            if error.is_of_lost_namespace:  # the job is deleted with it
                return Plan(dict(job.status), requeue_after=REFUSED_AGAIN)
            if not error.is_verdict:
                raise
            return refused(job, observed, now, Reason.REFUSED, error.message, REFUSED_AGAIN)
        if obstacles:
            planned = deletion_blocked(planned, obstacles, REFUSED_AGAIN)
        return replace(planned, requeue_after=_soonest(planned.requeue_after, explained_in))

    def _plan(self, key: ObjectKey, job: TrainingJob, observed: Observed, now: datetime) -> Plan:
        return plan(job, self._pool(job), observed, now, self._endpoint(key), self._gangs, self._queue(key, job))

    async def _leaving(self, job: TrainingJob, planned: Plan) -> dict[str, Leaving]:
        """What the node says whose pod has just disrupted the job; one read for each disruption."""
        name = node_of_disruption(job.status, planned.status)
        if name is None:
            return {}
        try:
            found = leaving(await self._api.get(NODES, None, name))
        except ApiError as error:
            if error.code not in (403, 404):
                raise
            found = GONE if error.code == 404 else None
        return {name: found} if found else {}

    def _pool(self, job: TrainingJob) -> AcceleratorPool | None:
        pool = choose(job, self._stores.accelerator_pools())
        return replace(pool, image=image_of(pool, self._settings.image)) if pool and not pool.image else pool

    def _queue(self, key: ObjectKey, job: TrainingJob) -> kueue.Queue | None:
        """What the job's quota depends on; None for a job that is in no queue, or that need not wait."""
        wanted = bool(kueue.queue_of(job) or job.spec.managed_by)
        if not self._queues.followed or self._queues.trouble:
            trouble = self._queues.trouble or (multikueue.NO_KUEUE if job.spec.managed_by else "")
            return kueue.Queue(trouble=trouble) if wanted and trouble else None
        workload = self._workload(key, job)
        if workload is None and not wanted:
            return None
        place = self._places(key[0], workload.name) if workload else None
        return kueue.Queue(workload, self._stores.flavors(), self._stores.priorities(), place=place)

    async def _follow(self, key: ObjectKey, job: TrainingJob, changes: tuple[kueue.Change, ...]) -> None:
        workload = self._workload(key, job)
        if workload:
            await self._change(workload, changes)

    def _workload(self, key: ObjectKey, job: TrainingJob) -> Workload | None:
        return kueue.workload_of(job, self._stores.workloads.group(key))

    async def _change(self, workload: Workload, changes: tuple[kueue.Change, ...]) -> None:
        """Patch a Workload; a conflict with Kueue raises, and the next reconcile sees what Kueue wrote."""
        stored = workload.stored
        for change in changes:
            given = change.patch.get("metadata") or {}
            meta = {**given, "resourceVersion": stored["metadata"]["resourceVersion"]}
            body = {"status": change.patch} if change.of_status else change.patch
            body = {**body, "metadata": meta}
            send = self._api.patch_status if change.of_status else self._api.patch
            try:
                stored = await send(WORKLOADS, stored["metadata"]["namespace"], workload.name, body)
            except ApiError as error:
                if error.code != 404:
                    raise
                return
            self._stores.take(WORKLOADS, stored)

    async def _release_workloads(self, key: ObjectKey, stored: Object | None) -> None:
        """Let go of Workloads whose TrainingJob is gone, as soon as none of its pods is left."""
        current = stored["metadata"]["uid"] if stored else None
        for one in self._stores.workloads.group(key):
            uid = owner(one)
            if uid == current or "deletionTimestamp" not in one["metadata"]:
                continue
            pods = [*self._stores.pods.group(key), *self._stores.jobs.group(key)]
            if not any((pod["metadata"].get("labels") or {}).get(LABEL_JOB_UID) == uid for pod in pods):
                workload = Workload(one)
                await self._change(workload, kueue.released(workload).changes)

    async def _observed(self, key: ObjectKey, job: TrainingJob, now: datetime) -> tuple[Observed, float | None]:
        """The state in the cache, with Events of jobs that wait without a reason, or seconds until they are read."""
        observed = self._observe(key, job)
        waiting = silent(observed)
        if waiting is None:
            return observed, None
        if left := waiting.left(now):
            return observed, left.total_seconds()
        waits = (self._stores.jobs if waiting.kind == JOBS.kind else self._stores.pods).get((key[0], waiting.name))
        warnings = await self._warnings.about(waiting.kind, waits) if waits else []
        early = not warnings and bool(waiting.left(now, UNEXPLAINED_FOR))
        return self._observe(key, job, warnings), UNEXPLAINED_AGAIN if early else EXPLAINED_AGAIN

    def _observe(
        self,
        key: ObjectKey,
        job: TrainingJob,
        events: Iterable[Object] = (),
        nodes: Mapping[str, Leaving] | None = None,
    ) -> Observed:
        jobs, pods = self._stores.jobs.group(key), self._stores.pods.group(key)
        services = frozenset(one["metadata"]["name"] for one in self._stores.services.group(key))
        return replace(observe(job, jobs, pods, events, nodes), services=services)

    async def _unshared(self, job: TrainingJob, planned: Plan) -> str | None:
        """Why the new pods could not all write to the output; a claim that does not exist yet is no reason."""
        name = output_claim(job, planned.apply)
        if name is None:
            return None
        try:
            return unshared(await self._api.get(CLAIMS, job.namespace, name))
        except ApiError as error:
            if error.code not in (403, 404):
                raise
            return None

    async def _create(self, child: Object, job: TrainingJob) -> None:
        """Create ``child``, or adopt it if it exists and is ours, such as after a crash between two writes."""
        resource = resource_of(child["apiVersion"], child["kind"], self._gangs)
        try:
            made = await self._api.create(resource, child)
        except ApiError as error:
            if error.is_unserved:
                if resource is WORKLOADS:
                    self._queues = self._queues.gone
                raise Unserved(unserved(resource)) from None
            if error.code != 409:
                raise
            meta = child["metadata"]
            made = await self._api.get(resource, meta["namespace"], meta["name"])
            _check_owner(made, job)
            if resource is WORKLOADS:
                made = await self._labelled(made, meta["labels"])
        if resource in (JOBS, SERVICES, WORKLOADS):
            self._stores.take(resource, made)

    async def _labelled(self, workload: Object, labels: Mapping[str, str]) -> Object:
        """With the labels by which it is watched, which somebody has removed: it would be created again and again."""
        metadata = workload["metadata"]
        if labels.items() <= (metadata.get("labels") or {}).items():
            return workload
        patch = {"metadata": {"labels": dict(labels)}}
        return await self._api.patch(WORKLOADS, metadata["namespace"], metadata["name"], patch)

    async def _try_to_create(self, child: Object, job: TrainingJob) -> None:
        """Create what the job does well without; where it is refused, it is tried again at the next look."""
        try:
            await self._create(child, job)
        except (NameConflict, ApiError) as error:
            if isinstance(error, ApiError) and not error.is_verdict:
                raise
            logger.warning("%s %s cannot be created: %s", child["kind"], child["metadata"]["name"], error)

    async def _restore(self, lost: Object, job: TrainingJob) -> str:
        """Recreate a child that a running attempt has lost; returns why it was refused, or empty."""
        named = f"{lost['kind']} {lost['metadata']['name']}"
        try:
            await self._create(lost, job)
        except NameConflict as error:
            return f"{named} belongs to {error.owner}, but the pods need it"
        except ApiError as error:
            if not error.is_verdict or error.is_of_lost_namespace:
                raise
            logger.warning("%s cannot be recreated: %s", named, error.message)
            return f"{named} cannot be recreated: {error.message}"
        logger.info("%s was deleted; it is recreated", named)
        return ""

    async def _delete(self, gone: Delete, job: TrainingJob) -> str:
        """Delete a child; returns why it was refused, which does not affect the job, or empty."""
        resource = resource_of(gone.api_version, gone.kind, self._gangs)
        uid = job.uid if resource is TRAINING_JOBS else None
        try:
            await self._api.delete(resource, job.namespace, gone.name, uid, gone.propagation)
        except ApiError as error:
            if not error.is_verdict or error.is_of_lost_namespace:
                raise
            logger.warning("%s %s cannot be deleted: %s", gone.kind, gone.name, error.message)
            return f"{gone.kind} {gone.name} cannot be deleted: {error.message}"
        return ""

    async def _write(self, key: ObjectKey, stored: Object, planned: Plan, now: datetime) -> float | None:
        """Write the changed status, then record events; returns the seconds to wait if the write is not due yet."""
        before = stored.get("status") or {}
        patch = merge_patch(before, planned.status)
        if not patch:
            return None
        if (left := _passes(stored, planned.status, now)) > 0:
            return left
        linger = GANG_SECONDS if only_counts_pods(patch) else 0.0
        if can_wait(patch, before) and (wait := self._pace.wait(key, now, linger)) > 0:
            return wait
        logger.debug("status changes", extra={"patch": patch})
        body = {"metadata": {"resourceVersion": stored["metadata"]["resourceVersion"]}, "status": patch}
        try:
            written = await self._api.patch_status(TRAINING_JOBS, *key, body)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        self._stores.take(TRAINING_JOBS, written)
        if "completionTime" in planned.status:
            self._forget(key)
        else:
            self._pace.written(key, now)
        self._metrics.transition(stored, planned.status, now)
        self._tell(written, planned, now)
        return None

    def _tell(self, job: Object, planned: Plan, now: datetime) -> None:
        attempts = planned.status.get("attempts") or [{"attempt": 0}]
        for event in planned.events:
            logger.info(event.message, extra={"reason": event.reason, "attempt": attempts[-1]["attempt"]})
            self._recorder.tell(job, event, now)

    def _forget(self, key: ObjectKey) -> None:
        self._pushes.pop(key, None)
        self._pace.forget(key)


def _check_owner(obj: Object, job: TrainingJob) -> None:
    owners = obj["metadata"].get("ownerReferences") or []
    if any(owner.get("uid") == job.uid for owner in owners):
        return
    holder = next((f"{owner['kind']}/{owner['name']}" for owner in owners if owner.get("controller")), "nobody")
    raise NameConflict(f"{obj['kind']} {obj['metadata']['name']}", holder)


def _passes(stored: Object, planned: Mapping[str, Any], now: datetime) -> float:
    """Seconds for which the start of an admitted job need not be written: its quota was given, so its pods are often
    ready at once. An operator that dies meanwhile adopts the attempt from its Job.
    """
    before = stored.get("status") or {}
    if kueue.LABEL_QUEUE not in (stored["metadata"].get("labels") or {}):
        return 0.0
    if before.get("attempts") or before.get("state") not in (None, "Queued") or planned.get("state") != "Starting":
        return 0.0
    started = read_time(planned["attempts"][-1]["startTime"]) if planned.get("attempts") else None
    return (started - now).total_seconds() + STARTING_SECONDS if started else 0.0


def _soonest(*seconds: float | None) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
