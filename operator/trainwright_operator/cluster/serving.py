"""Serves the progress endpoint on the leader: certificate from the Secret, and the label for the Service."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from asyncio import sslproto
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
from aiohttp import web

from trainwright_operator.api.names import LABEL_LEADER, LABEL_MANAGED_BY, MANAGED_BY
from trainwright_operator.cluster.cache import ObjectKey
from trainwright_operator.cluster.certificate import Certificates, flaw, renewed
from trainwright_operator.cluster.client import Api, ApiError, Object
from trainwright_operator.cluster.progress import audience, push_path
from trainwright_operator.cluster.resources import PODS, SECRETS
from trainwright_operator.cluster.settings import Settings
from trainwright_operator.core.pods import PushEndpoint

CHECK_SECONDS = 600.0
"""How often the Secret is checked: whether it exists, and whether the certificate must be renewed."""
AGAIN_SECONDS = 30.0
"""Seconds until a retry if the endpoint could not be served."""
TLS_BUFFER_BYTES = 32 * 1024
"""Read buffer per connection. Python's default of 256 KiB is half a gigabyte if 2,000 trainers push to a new leader at
once; a push and a TLS record are smaller than this."""

IDLE_SECONDS = 30.0
"""How long a connection may be idle."""
LAST_SECONDS = 1.0
"""How long to wait at exit for incomplete requests; the lease is released afterwards."""

UNSERVED = "progress is not served, and jobs show no steps before they end"

logger = logging.getLogger(__name__)


class Identity:
    """The certificates of the endpoint, stored in the Secret, and the TLS context that uses them.

    ``trouble`` says what does not work and why, or is empty; the operator works without the endpoint.
    """

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api, self._settings = api, settings
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.num_tickets = 0  # trainers never resume a session
        sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
        self._current: Certificates | None = None
        self.trouble = ""

    @property
    def _place(self) -> tuple[str, str]:
        return self._settings.operator_namespace, self._settings.certificate_secret

    async def load(self) -> bool:
        """Read the Secret, renew what is due, write it back and use it; returns whether there is a certificate.

        If this fails, the current certificate stays in use.
        """
        namespace, name = self._place
        try:
            await self._load()
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            what = "the certificate of progress is not renewed" if self._current else UNSERVED
            self._complain(f"{what}: Secret {name} of namespace {namespace}: {str(error) or 'no answer in time'}")
            return self._current is not None
        self.trouble = ""
        return True

    async def _load(self) -> None:
        secret = await self._read()
        stored = Certificates.from_secret_data((secret or {}).get("data") or {})
        if wrong := flaw(stored) if stored else "":
            logger.warning("Secret %s of namespace %s: %s; writing new certificates", *reversed(self._place), wrong)
        sound = None if wrong else stored
        fresh = renewed(sound or self._current or stored, self._settings.progress_hosts, datetime.now(UTC))
        if fresh is not sound:
            await self._write(secret, fresh)
        self._current = fresh
        with tempfile.NamedTemporaryFile(suffix=".pem") as chain:  # ssl loads certificates from files only
            chain.write(fresh.server + fresh.server_key)
            chain.flush()
            self.tls.load_cert_chain(chain.name)

    async def _read(self) -> Object | None:
        try:
            return await self._api.get(SECRETS, *self._place)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    async def _write(self, secret: Object | None, fresh: Certificates) -> None:
        """Replace the Secret, or create it.

        Create by apply, because RBAC can restrict an apply to a name, but not a plain create.
        """
        namespace, name = self._place
        if secret is None:
            metadata = {"name": name, "namespace": namespace, "labels": {LABEL_MANAGED_BY: MANAGED_BY}}
            body = {"apiVersion": "v1", "kind": SECRETS.kind, "metadata": metadata, "type": "Opaque"}
            await self._api.apply(SECRETS, {**body, "data": fresh.to_secret_data()})
            logger.info("Secret %s of namespace %s does not exist; creating it", name, namespace)
        else:
            version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
            await self._api.patch(SECRETS, namespace, name, {"metadata": version, "data": fresh.to_secret_data()})

    def _complain(self, why: str) -> None:
        if why != self.trouble:
            logger.warning("%s; retrying", why)
        self.trouble = why

    async def serve(self, app: Callable[[], web.Application], serving_now: Callable[[bool], None]) -> None:
        """Serve until cancelled, once there is a certificate and the port is free; never returns by itself."""
        while True:
            try:
                if self._current or await self.load():
                    async with serving(app(), self._settings.progress_port, self.tls):
                        await self._served(serving_now)
            except OSError as error:
                self._complain(f"{UNSERVED}: port {self._settings.progress_port}: {error.strerror or error}")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _served(self, serving_now: Callable[[bool], None]) -> None:
        if self.trouble.startswith(UNSERVED):
            self.trouble = ""
        await mark_leader(self._api, self._settings, leads=True)
        serving_now(True)
        try:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                await self.load()
        finally:
            serving_now(False)
            await mark_leader(self._api, self._settings, leads=False)

    def endpoint(self, key: ObjectKey) -> PushEndpoint | None:
        """The endpoint for the pods of a job; None while there is no certificate."""
        if self._current is None:
            return None
        url = self._settings.progress_base_url + push_path(*key)
        return PushEndpoint(url=url, audience=audience(*key), ca=self._current.authority.decode())


@asynccontextmanager
async def serving(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=LAST_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=tls, backlog=1024).start()
        yield
    finally:
        await runner.cleanup()


async def mark_leader(api: Api, settings: Settings, leads: bool) -> None:
    """Add the label that the progress Service selects to our own pod, or remove it; does nothing outside a pod."""
    patch = {"metadata": {"labels": {LABEL_LEADER: "true" if leads else None}}}
    try:
        await api.patch(PODS, settings.operator_namespace, settings.pod_name, patch)
    except (ApiError, aiohttp.ClientError, TimeoutError) as error:
        if not (isinstance(error, ApiError) and error.code == 404):
            logger.warning("could not label own pod: %s", error)
