"""Leadership by a ``coordination.k8s.io`` Lease: of several replicas, one works and the others wait.

The holder renews every few seconds and gives up its work *before* another may take over: it steps down when it could
not renew for ``renew_deadline``, which is shorter than ``duration``, after which a standby takes the lease. A standby
judges by its own clock how long the lease has stood still, so clocks that disagree do no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from trainwright_operator.cluster.api import Api, ApiError, Object, Resource

LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. ``duration`` is how long a silent lease is respected."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    period: float = 2.0


class Lease:
    """One candidate. ``hold`` returns when leadership was won; ``lost`` is set when it must stop working."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing = Timing(),
        now: Callable[[], float] | None = None,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._timing = timing
        self._now = now or (lambda: asyncio.get_running_loop().time())
        self._seen: tuple[str, float] = ("", 0.0)
        self.lost = asyncio.Event()

    async def hold(self) -> None:
        """Wait until the lease is ours."""
        while True:
            try:
                if await self._try():
                    break
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("lease not reached: %s", error)
            await asyncio.sleep(self._timing.period)
        logger.info("leading", extra={"lease": self._name, "identity": self._identity})

    async def keep(self) -> None:
        """Renew until cancelled; sets ``lost`` and returns when it cannot, or when another holds the lease."""
        renewed = self._now()
        while self._now() - renewed < self._timing.renew_deadline:
            await asyncio.sleep(self._timing.period)
            started = self._now()
            try:
                async with asyncio.timeout(self._timing.renew_deadline / 2):
                    if not await self._try():
                        break
                renewed = started
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("lease not renewed: %s", error)
        self.lost.set()

    async def release(self) -> None:
        """Let a standby take over at once; never raises, for it runs on the way out."""
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=_microtime())
                await self._replace(lease)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("lease not released: %s", error)

    async def _try(self) -> bool:
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except ApiError as error:
            if error.code != 404:
                raise
            return await self._create()
        spec = lease.setdefault("spec", {})
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._expired(lease):
            return False
        taken_over = holder != self._identity
        spec.update(
            holderIdentity=self._identity,
            leaseDurationSeconds=int(self._timing.duration),
            renewTime=_microtime(),
            acquireTime=_microtime() if taken_over else spec.get("acquireTime"),
            leaseTransitions=(spec.get("leaseTransitions") or 0) + taken_over,
        )
        return await self._replace(lease)

    def _expired(self, lease: Object) -> bool:
        """True when the lease has not changed for its duration, by our own clock."""
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, self._now())
        return self._now() - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or self._timing.duration)

    async def _create(self) -> bool:
        now = _microtime()
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._timing.duration),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        metadata = {"name": self._name, "namespace": self._namespace}
        body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
        return await self._unless_conflict(self._api.create(LEASES, body))

    async def _replace(self, lease: Object) -> bool:
        return await self._unless_conflict(self._api.replace(LEASES, lease))

    async def _unless_conflict(self, write: Awaitable[Object]) -> bool:
        try:
            await write
        except ApiError as error:
            if error.code != 409:
                raise
            return False
        return True


def _microtime() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
