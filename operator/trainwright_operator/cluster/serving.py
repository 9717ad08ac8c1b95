"""The progress endpoint as the leader serves it: a certificate from the one Secret, its pod marked for the Service."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from asyncio import sslproto
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
from aiohttp import web

from trainwright_operator.cluster.api import Api, ApiError
from trainwright_operator.cluster.cache import ObjectKey
from trainwright_operator.cluster.certificate import Certificates, flaw, renewed
from trainwright_operator.cluster.progress import audience, push_path
from trainwright_operator.cluster.resources import PODS, SECRETS
from trainwright_operator.cluster.settings import Settings
from trainwright_operator.core.pods import Endpoint
from trainwright_operator.names import LABEL_LEADER

RENEWAL_CHECK_SECONDS = 6 * 3600.0
TLS_BUFFER_BYTES = 32 * 1024
"""Of each connection. Python's own 256 KiB are half a gigabyte when 2,000 trainers push to a new leader at once; a
push is smaller than this, and so is a record of TLS."""

IDLE_SECONDS = 30.0
"""How long a connection may bring no request."""
LAST_SECONDS = 1.0
"""How long what is half received is waited for on the way out: the lease is released after it."""

logger = logging.getLogger(__name__)


class Identity:
    """The endpoint's certificates, kept in the Secret, and the TLS context that serves them."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api, self._settings = api, settings
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.num_tickets = 0  # a pusher never comes back to the same session
        sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
        self.authority = ""

    async def load(self) -> None:
        """Read the Secret, renew what is due, write it back, and serve it from now on."""
        namespace, name = self._settings.operator_namespace, self._settings.certificate_secret
        secret = await self._api.get(SECRETS, namespace, name)
        current = Certificates.from_secret_data(secret.get("data") or {})
        if current and (wrong := flaw(current)):
            logger.warning("Secret %s of namespace %s: %s; it is filled anew", name, namespace, wrong)
        fresh = renewed(current, self._settings.progress_hosts, datetime.now(UTC))
        if fresh is not current:
            version = secret["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": fresh.to_secret_data()}
            await self._api.patch(SECRETS, namespace, name, patch)
        self.authority = fresh.authority.decode()
        with tempfile.NamedTemporaryFile(suffix=".pem") as chain:  # ssl loads certificates from files only
            chain.write(fresh.server + fresh.server_key)
            chain.flush()
            self.tls.load_cert_chain(chain.name)

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_CHECK_SECONDS)
            try:
                await self.load()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("certificate not renewed: %s", error)

    def endpoint(self, key: ObjectKey) -> Endpoint:
        """What the pods of a job are told."""
        url = self._settings.progress_base_url + push_path(*key)
        return Endpoint(url=url, audience=audience(*key), ca=self.authority)


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
    """Put the label that the progress Service selects on our own pod, or take it off; outside a pod nothing happens."""
    patch = {"metadata": {"labels": {LABEL_LEADER: "true" if leads else None}}}
    try:
        await api.patch(PODS, settings.operator_namespace, settings.pod_name, patch)
    except (ApiError, aiohttp.ClientError, TimeoutError) as error:
        if not (isinstance(error, ApiError) and error.code == 404):
            logger.warning("own pod not labelled: %s", error)
