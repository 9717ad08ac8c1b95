"""Leadership by a ``coordination.k8s.io`` Lease: of several replicas, one works and the others wait.

The holder renews every few seconds and stops working *before* another may take over: it steps down ``renew_deadline``
after it sent the last successful renewal, and a standby takes over only ``duration`` after that renewal was written. A
standby measures with its own clock how long the lease has not changed, so clock skew does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from trainwright_operator.cluster.client import Api, ApiError, Object, Resource

LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")
RELEASE_SECONDS = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. ``duration`` is how long a lease that is not renewed stays valid."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    period: float = 2.0


class Lease:
    """One candidate. ``hold`` returns when it leads; ``lost`` is set when it must stop working."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing = Timing(),
        now: Callable[[], float] | None = None,
        owner: Object | None = None,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._timing, self._owners = timing, [owner] if owner else []
        self._now = now or (lambda: asyncio.get_running_loop().time())
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed = 0.0
        self._other: tuple[str, float] = ("", 0.0)
        self.trouble = ""
        """Why the last request failed; empty if it succeeded."""
        self.lost = asyncio.Event()

    async def hold(self) -> None:
        """Wait until this candidate holds the lease."""
        while not await self._renew(self._timing.renew_deadline / 2, "reached"):
            await asyncio.sleep(self._timing.period)
        logger.info("leading", extra={"lease": self._name, "identity": self._identity})

    def another(self) -> str:
        """The other holder, if its last renewal is recent; else empty."""
        holder, at = self._other
        return holder if self._now() - at <= self._timing.duration else ""

    async def keep(self) -> None:
        """Renew until cancelled; sets ``lost`` and returns if renewal fails for too long, or another holds the lease.

        Start it as soon as the lease is held.
        """
        while (left := self._left()) > 0:
            await asyncio.sleep(min(self._timing.period, left))
            patience = min(self._timing.renew_deadline / 2, self._left())
            if patience > 0 and await self._renew(patience, "renewed") is False:
                break
        self.lost.set()

    async def release(self) -> None:
        """Let a standby take over immediately; never raises or blocks for long, because it runs at exit."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._api.get(LEASES, self._namespace, self._name)
                if lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=_microtime())
                    await self._api.replace(LEASES, lease)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("lease not released: %s", _describe(error))

    def _left(self) -> float:
        """Seconds in which the lease must be renewed."""
        return self._renewed + self._timing.renew_deadline - self._now()

    async def _renew(self, patience: float, verb: str) -> bool | None:
        """Acquire or renew the lease; False if another holds it, None if unknown."""
        began = self._now()
        try:
            async with asyncio.timeout(patience):
                ours = await self._try()
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self.trouble = f"lease not {verb}: {_describe(error)}"
            logger.warning(self.trouble)
            return None
        self.trouble = ""
        if ours:
            self._renewed = began
        return ours

    async def _try(self) -> bool:
        """Retry once after a conflict: it may be with our own write, if its response was lost."""
        try:
            return await self._take()
        except ApiError as error:
            if error.code != 409:
                raise
            return await self._take()

    async def _take(self) -> bool:
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except ApiError as error:
            if error.code != 404:
                raise
            await self._create()
            return True
        spec = lease.setdefault("spec", {})
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._expired(lease):
            self._other = holder, self._now()
            return False
        taken_over = holder != self._identity
        if taken_over and self._owners:
            lease["metadata"]["ownerReferences"] = self._owners
        spec.update(
            holderIdentity=self._identity,
            leaseDurationSeconds=int(self._timing.duration),
            renewTime=_microtime(),
            acquireTime=_microtime() if taken_over else spec.get("acquireTime"),
            leaseTransitions=(spec.get("leaseTransitions") or 0) + taken_over,
        )
        await self._api.replace(LEASES, lease)
        return True

    def _expired(self, lease: Object) -> bool:
        """True if the lease has not changed for its duration, by our own clock."""
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, self._now())
        return self._now() - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or self._timing.duration)

    async def _create(self) -> None:
        now = _microtime()
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._timing.duration),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        owners = {"ownerReferences": self._owners} if self._owners else {}
        metadata = {"name": self._name, "namespace": self._namespace, **owners}
        body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
        await self._api.create(LEASES, body)


def _describe(error: Exception) -> str:
    return str(error) or "no answer in time"


def _microtime() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
