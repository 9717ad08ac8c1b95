"""The kopf handlers: watch resources and pass on every event. Nothing is decided here.

``on.event`` handlers make kopf write nothing: no finalizer, no annotation, no status. kopf does not retry or coalesce
them, so they only feed the cache and the queue, which do both.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from trainwright_operator.cluster.client import CHUNK, Object, Resource
from trainwright_operator.cluster.settings import Settings

OnEvent = Callable[[Resource, str | None, Object], None]
"""Called with the resource, the event's type (None for objects of the initial list), and the object."""

IDLE_SECONDS = 0.5
"""How long kopf keeps a task and the last event of an idle object; after a start it has one for every object."""


class NothingKept(kopf.DiffBaseStorage):
    """Disables deep copies for kopf's comparison with the last handled object; event handlers do not need it."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return {}

    def store(self, **_: Any) -> None:
        pass


class NothingBegun(kopf.ProgressStorage):
    """Disables kopf's search for unfinished handlers in every object; event handlers store nothing."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


async def watch(settings: Settings, watched: Mapping[Resource, str], on_event: OnEvent, stop: asyncio.Event) -> None:
    """Watch ``watched`` (resource: label selector) until ``stop``.

    Raises if kopf stops by itself, so that the process exits and is restarted.
    """
    await kopf.operator(
        registry=_registry(watched, on_event),
        settings=_settings(watched),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
    )


def _registry(watched: Mapping[Resource, str], on_event: OnEvent) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for resource in watched:
        _subscribe(registry, resource, on_event)
    return registry


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The same credentials as :func:`.client.connect`; kopf asks again when a token has expired."""
    if "KUBECONFIG" in os.environ:
        return kopf.login_with_kubeconfig(**kwargs)
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _subscribe(registry: kopf.OperatorRegistry, resource: Resource, on_event: OnEvent) -> None:
    group, version = _group_version(resource)

    @kopf.on.event(group, version, resource.plural, registry=registry, id=f"watch-{resource.plural}")
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        on_event(resource, event["type"], dict(event["object"]))


def _group_version(resource: Resource) -> tuple[str, str]:
    group, _, version = resource.api_version.rpartition("/")
    return group, version


def _settings(watched: Mapping[Resource, str]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.execution.max_workers = 1
    settings.persistence.diffbase_storage = NothingKept()
    settings.persistence.progress_storage = NothingBegun()
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.watching.chunk_size = CHUNK
    settings.watching.initial_streaming = False
    for resource, selector in watched.items():
        if selector:
            settings.watching.label_selectors[*_group_version(resource), resource.plural] = selector
    return settings
