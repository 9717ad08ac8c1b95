"""The operator's process: settings, health, leadership, then the leader's work until it ends or loses the lease."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack

from trainwright_operator.cluster import gc_tuning, handlers, health, logs
from trainwright_operator.cluster.client import Api, ApiError, Connection, NoClusterError, connect, service_account
from trainwright_operator.cluster.controller import Controller, utcnow
from trainwright_operator.cluster.health import Pulse
from trainwright_operator.cluster.informer import Stores
from trainwright_operator.cluster.lease import Lease, Timing
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.places import Places
from trainwright_operator.cluster.progress import ProgressEndpoint, RateLimit, TokenCheck
from trainwright_operator.cluster.reconciler import Reconciler
from trainwright_operator.cluster.recorder import Recorder
from trainwright_operator.cluster.resources import find_gangs, find_queues
from trainwright_operator.cluster.serving import Identity, mark_leader, serving
from trainwright_operator.cluster.settings import Settings, SettingsError, from_environment

logger = logging.getLogger(__name__)


async def run(settings: Settings) -> int:
    """The exit code: 0 after a stop request, 1 if leadership was lost or a part failed, so that it is restarted."""
    metrics, stores, stop = Metrics(), Stores(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        connection = connect()
        api = await stack.enter_async_context(Api(connection, metrics.api_request))
        # Separate connections, so that a renewal does not queue behind a burst of writes.
        lease_api = await stack.enter_async_context(Api(connection, metrics.api_request))
        lease = _lease(settings, lease_api, connection)
        pulse = Pulse(lease.another, lambda: lease.trouble)
        app = health.application(metrics, pulse, refresh=lambda: metrics.count_jobs(stores.training_jobs, stores.pools))
        await stack.enter_async_context(serving(app, settings.http_port))
        parts: list[Awaitable[object]] = [stop.wait()]
        if settings.leader_election:
            await mark_leader(api, settings, leads=False)
            if not await _first(lease.hold(), stop.wait()):
                return 0
            stack.push_async_callback(lease.release)
            parts.append(lease.keep())  # renew during the long initial lists, too
        await _first(*parts, _lead(api, stores, metrics, settings, pulse, stop))
    if lease.lost.is_set():
        logger.error("leadership was lost")
    return int(lease.lost.is_set())


async def _lead(
    api: Api, stores: Stores, metrics: Metrics, settings: Settings, pulse: Pulse, stop: asyncio.Event
) -> None:
    """Run the leader's work until it is cancelled or a part of it ends."""
    pulse.leads = True
    identity = Identity(api, settings) if settings.progress_port else None
    if identity:
        await identity.load()
        pulse.without.append(lambda: identity.trouble)
    endpoint = identity.endpoint if identity else lambda key: None
    gangs = await find_gangs(api, settings.gang_timeout)
    queues = await find_queues(api, settings.kueue, settings.namespaces)
    recorder = Recorder(api, settings.pod_name)
    places = Places(api, stores.workloads)
    reconciler = Reconciler(api, stores, settings, metrics, recorder, utcnow, endpoint, gangs, queues, places.of)
    controller = Controller(api, stores, reconciler, settings, metrics, places if queues.followed else None)
    with gc_tuning.spared():
        await controller.prime()
    pulse.primed = True
    pulse.still.append(controller.still)
    metrics.leading.set(1)
    async with AsyncExitStack() as stack:
        parts = [
            controller.run(),
            recorder.run(),
            handlers.watch(settings, controller.watched_by_kopf, controller.on_event, stop),
        ]
        stack.push_async_callback(recorder.flush)
        if identity:
            app = _endpoint(api, stores, metrics, settings, controller)
            parts.append(identity.serve(app.application, metrics.progress_serving.set))
        stack.callback(metrics.leading.set, 0)
        await _first(*parts)


def _endpoint(
    api: Api, stores: Stores, metrics: Metrics, settings: Settings, controller: Controller
) -> ProgressEndpoint:
    return ProgressEndpoint(
        TokenCheck(api),
        stores.training_jobs,
        stores.pods,
        controller.on_progress,
        lambda result: metrics.progress_pushes.labels(result).inc(),
        RateLimit(settings.progress_rate),
        settings.progress_max_bytes,
    )


async def _first(*parts: Awaitable[object]) -> bool:
    """Run all until the first ends, then cancel the rest; True if that was the first of ``parts``."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return tasks[0] in done


def _lease(settings: Settings, api: Api, connection: Connection) -> Lease:
    timing = Timing(settings.lease_duration, settings.lease_renew_deadline, settings.lease_period)
    namespace = settings.operator_namespace
    owner = service_account(connection, namespace)
    return Lease(api, namespace, settings.lease_name, settings.pod_name, timing, owner=owner)


def main() -> int:
    """The exit code; 2 if it cannot start until the user fixes something."""
    try:
        settings = from_environment()
        logs.configure(settings.log_level)
        return asyncio.run(run(settings))
    except (SettingsError, NoClusterError) as error:
        print(f"trainwright-operator: {error}", file=sys.stderr)
        return 2
    except ApiError as error:
        print(f"trainwright-operator: the API server refused: {error}", file=sys.stderr)
        return 1
