"""The HTTPS endpoint to which trainers push progress; it answers immediately and decides nothing.

A push is accepted if the API server confirms that its token is bound to a pod (one TokenReview per token), and that pod
belongs to the current attempt of the job in the path. ``accept`` gets the push, and the reconciler writes the latest
one into the status later. So a pod of another job, of an earlier attempt or without a job cannot report progress.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from trainwright_operator.api.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_JOB_UID
from trainwright_operator.cluster.cache import Object, ObjectKey, Store
from trainwright_operator.cluster.client import Api, ApiError, Resource
from trainwright_operator.core.observe import maker_of

TOKEN_REVIEWS = Resource("authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False)
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
REFUSAL_LIFETIME_SECONDS = 10.0
MAX_REMEMBERED = 20_000
BODY_SECONDS = 10.0

Accept = Callable[[ObjectKey, dict[str, Any]], None]

logger = logging.getLogger(__name__)


def audience(namespace: str, name: str) -> str:
    """The audience of a pod's token, which is valid only for the progress of this job."""
    return f"trainwright.dev/progress/{namespace}/{name}"


def push_path(namespace: str, name: str) -> str:
    return f"/v1alpha1/namespaces/{namespace}/trainingjobs/{name}/progress"


class PushRefused(Exception):
    """A refused push: the HTTP code, a label for the metric, and the reason for the log."""

    def __init__(self, code: int, result: str, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.code, self.result, self.retry_after = code, result, retry_after


@dataclass(frozen=True)
class Caller:
    """The pod that a token is bound to, as the API server confirmed."""

    namespace: str
    pod: str
    uid: str


class TokenCheck:
    """Verifies a token with the API server once, and caches the result by its hash until the token expires."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.time) -> None:
        self._api, self._clock = api, clock
        self._known: dict[bytes, tuple[float, Caller | None]] = {}

    async def caller(self, token: str, wanted_audience: str) -> Caller:
        digest = hashlib.sha256(f"{wanted_audience}\n{token}".encode()).digest()
        until, caller = self._known.get(digest, (0.0, None))
        if until <= self._clock():
            caller = await self._review(token, wanted_audience)
            self._remember(digest, caller, token)
        if caller is None:
            raise PushRefused(401, "unauthenticated", "the token is not valid for this job's progress")
        return caller

    async def _review(self, token: str, wanted_audience: str) -> Caller | None:
        body = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "metadata": {},
            "spec": {"token": token, "audiences": [wanted_audience]},
        }
        try:
            status = (await self._api.create(TOKEN_REVIEWS, body)).get("status", {})
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            raise PushRefused(503, "unverified", f"the API server could not check the token: {error}", 5) from None
        return caller_of(status, wanted_audience)

    def _remember(self, digest: bytes, caller: Caller | None, token: str) -> None:
        now = self._clock()
        if len(self._known) >= MAX_REMEMBERED:
            self._known = {key: entry for key, entry in self._known.items() if entry[0] > now}
        if len(self._known) < MAX_REMEMBERED:
            until = expiry_of(token) if caller else now + REFUSAL_LIFETIME_SECONDS
            self._known[digest] = (until, caller)


def caller_of(status: dict[str, Any], wanted_audience: str) -> Caller | None:
    """The pod in a TokenReview's status; None if it is not authenticated, for another audience, or bound to no pod."""
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    username = str(user.get("username", ""))
    if not status.get("authenticated") or wanted_audience not in (status.get("audiences") or []):
        return None
    if not username.startswith(SERVICE_ACCOUNT_PREFIX) or not extra.get(POD_NAME) or not extra.get(POD_UID):
        return None
    namespace = username.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")[0]
    return Caller(namespace, extra[POD_NAME][0], extra[POD_UID][0])


def expiry_of(token: str) -> float:
    """The ``exp`` of a token that the API server has already verified, in seconds since 1970; 0 if it has none."""
    try:
        payload = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (IndexError, KeyError, ValueError, TypeError):
        return 0.0


class RateLimit:
    """A token bucket for each caller: ``rate`` per second, bursts of twice that.

    A caller is a token, or the address for tokens that were refused.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> bool:
        level = self._level(caller)
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.clear()
        self._buckets[caller] = (level - 1 if level >= 1 else level, self._clock())
        return level >= 1

    def has(self, caller: str) -> bool:
        """Whether the caller may send another request now."""
        return self._level(caller) >= 1

    def _level(self, caller: str) -> float:
        now = self._clock()
        level, at = self._buckets.get(caller, (2 * self._rate, now))
        return min(2 * self._rate, level + (now - at) * self._rate)


class ProgressEndpoint:
    """The web application. ``jobs`` and ``pods`` are the reconciler's stores; ``count`` is called with each result."""

    def __init__(
        self,
        tokens: TokenCheck,
        jobs: Store,
        pods: Store,
        accept: Accept,
        count: Callable[[str], None],
        limit: RateLimit,
        max_bytes: int,
    ) -> None:
        self._tokens, self._jobs, self._pods = tokens, jobs, pods
        self._accept, self._count, self._limit, self._max_bytes = accept, count, limit, max_bytes

    def application(self) -> web.Application:
        app = web.Application(client_max_size=self._max_bytes)
        app.router.add_post(push_path("{namespace}", "{name}"), self._push)
        return app

    async def _push(self, request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        try:
            pod = await self._authenticated(request, key)
            body = await self._body(request)
        except PushRefused as refused:
            self._count(refused.result)
            headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else None
            return web.json_response({"error": str(refused)}, status=refused.code, headers=headers)
        self._count("accepted")
        self._accept(key, {**body, "pod": pod["metadata"]["name"], "attempt": attempt_of(pod)})
        return web.json_response({})

    async def _authenticated(self, request: web.Request, key: ObjectKey) -> Object:
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        token = rest.strip()
        if scheme.lower() != "bearer" or not token or not token.isascii():
            raise PushRefused(401, "unauthenticated", "a bearer token is needed")
        peer = request.remote or ""
        if not self._limit.take(hashlib.sha256(token.encode()).hexdigest()) or not self._limit.has(peer):
            raise PushRefused(429, "limited", "too many pushes", 1)
        try:
            caller = await self._tokens.caller(token, audience(*key))
        except PushRefused as refused:
            if refused.code == 401:  # every new token costs a TokenReview
                self._limit.take(peer)
            raise
        return self._believed(key, caller)

    def _believed(self, key: ObjectKey, caller: Caller) -> Object:
        pod = self._pods.get((caller.namespace, caller.pod))
        job = self._jobs.get(key)
        if caller.namespace != key[0] or pod is None or pod["metadata"]["uid"] != caller.uid:
            raise PushRefused(403, "foreign", f"pod {caller.namespace}/{caller.pod} is not a pod of this job")
        labels = pod["metadata"].get("labels") or {}
        ours = labels.get(LABEL_JOB) == key[1] and maker_of(pod) is not None
        if job is None or not ours or labels.get(LABEL_JOB_UID) != job["metadata"]["uid"]:
            raise PushRefused(403, "foreign", f"pod {caller.pod} belongs to another job")
        if attempt_of(pod) != current_attempt(job):
            raise PushRefused(409, "stale", f"pod {caller.pod} belongs to an earlier attempt")
        return pod

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = json.loads(await request.read())
        except TimeoutError:
            raise PushRefused(408, "slow", f"the body did not arrive within {BODY_SECONDS:g} s") from None
        except (web.RequestPayloadError, ConnectionError):
            raise PushRefused(400, "malformed", "the body was cut off, or is not encoded as its header says") from None
        except web.HTTPRequestEntityTooLarge:
            raise PushRefused(413, "oversized", f"at most {self._max_bytes} bytes") from None
        except (ValueError, RecursionError):  # RecursionError: deeply nested JSON
            raise PushRefused(400, "malformed", "the body is not JSON") from None
        if not isinstance(body, dict) or not isinstance(body.get("trainerStatus"), dict):
            raise PushRefused(400, "malformed", "the body has no object trainerStatus")
        return body


def attempt_of(pod: Object) -> int:
    label = (pod["metadata"].get("labels") or {}).get(LABEL_ATTEMPT, "")
    return int(label) if label.isdigit() else -1


def current_attempt(job: Object) -> int:
    """The number of the current attempt: the last one in status without an end, else the next."""
    attempts = (job.get("status") or {}).get("attempts") or [{"attempt": 0, "endTime": ""}]
    return int(attempts[-1]["attempt"]) + ("endTime" in attempts[-1])
