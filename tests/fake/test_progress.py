"""The progress endpoint: who is believed, who is refused with which code, and that a token is reviewed once."""

import asyncio
import base64
import json
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from trainwright_operator.api.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_JOB_UID, LABEL_SLICE
from trainwright_operator.cluster import progress
from trainwright_operator.cluster.cache import Store
from trainwright_operator.cluster.progress import POD_NAME, POD_UID, ProgressEndpoint, RateLimit, TokenCheck, audience

NOW = 1_800_000_000.0
THIS_JOB = audience("ns", "job")
PUSHES = "/v1alpha1/namespaces/ns/trainingjobs/job/progress"
BODY = {"trainerStatus": {"progressPercentage": 10}}


def token(pod="job-0-1-0-abcde", uid="pod-uid", aud=THIS_JOB, lifetime=600, namespace="ns"):
    """A token whose claims the fake review below reads, as the API server reads a signed one's."""
    claims = {"pod": pod, "uid": uid, "aud": aud, "exp": NOW + lifetime, "namespace": namespace}
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".s"


class Reviews:
    """TokenReview as the API server answers it; ``asked`` counts."""

    def __init__(self):
        self.asked = 0

    async def create(self, _, body):
        self.asked += 1
        payload = body["spec"]["token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        good = claims["aud"] in body["spec"]["audiences"]
        extra = {POD_NAME: [claims["pod"]], POD_UID: [claims["uid"]]} if claims["pod"] else {}
        user = {"username": f"system:serviceaccount:{claims['namespace']}:default", "extra": extra}
        return {"status": {"authenticated": good, "audiences": body["spec"]["audiences"], "user": user}}


@dataclass
class Scene:
    """An endpoint over a job at attempt 1 and one pod of it; ``accepted`` and ``results`` are what came out."""

    accepted: list = field(default_factory=list)
    results: list = field(default_factory=list)
    reviews: Reviews = field(default_factory=Reviews)
    clock: float = NOW
    rate: float = 1000.0
    ended: bool = False

    def push(self, *pushes, path=PUSHES):
        """Each push is (token, body bytes or dict); gives the answered codes."""
        return asyncio.run(self._push(pushes, path))

    def send(self, bytes_):
        """What is answered to these bytes, which may be no whole request."""

        async def exchange(address, port):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(bytes_)
            answer = await asyncio.wait_for(reader.read(100), 5)
            writer.close()
            return answer

        return asyncio.run(self._serve(exchange))

    async def _push(self, pushes, path):
        async def all_of_them(address, port):
            async with aiohttp.ClientSession() as session:
                return [await self._one(session, f"http://{address}:{port}{path}", *push) for push in pushes]

        return await self._serve(all_of_them)

    async def _serve(self, talk):
        jobs, pods = Store(), Store()
        last = {"attempt": 1, **({"endTime": "2026-01-01T00:00:00Z"} if self.ended else {})}
        meta = {"namespace": "ns", "name": "job", "uid": "job-uid", "resourceVersion": "1"}
        jobs.put({"metadata": meta, "status": {"attempts": [{"attempt": 0, "endTime": "x"}, last]}})
        labels = {LABEL_JOB: "job", LABEL_JOB_UID: "job-uid", LABEL_ATTEMPT: "1", LABEL_SLICE: "0"}
        for name, extra in (
            ("job-0-1-0-abcde", {}),
            ("job-0-0-0-fghij", {LABEL_ATTEMPT: "0"}),
            ("x-0-1-0-abcde", {LABEL_JOB: "x"}),
            ("job-0-1-0-former", {LABEL_JOB_UID: "former-uid"}),
            ("job-0-2-0-next", {LABEL_ATTEMPT: "2"}),
            ("copy-of-job-0-1-0-abcde", {}),
        ):
            own = labels | extra
            made_by = {"kind": "Job", "name": f"{own[LABEL_JOB]}-0-{own[LABEL_ATTEMPT]}", "controller": True}
            meta = {"namespace": "ns", "name": name, "uid": "pod-uid", "resourceVersion": "1"}
            pods.put({"metadata": {**meta, "labels": own, "ownerReferences": [made_by]}})
        endpoint = ProgressEndpoint(
            TokenCheck(self.reviews, lambda: self.clock),
            jobs,
            pods,
            lambda key, body: self.accepted.append((key, body)),
            self.results.append,
            RateLimit(self.rate, lambda: self.clock),
            max_bytes=1000,
        )
        runner = web.AppRunner(endpoint.application())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            return await talk("127.0.0.1", site._server.sockets[0].getsockname()[1])
        finally:
            await runner.cleanup()

    async def _one(self, session, url, bearer, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        async with session.post(url, data=data, headers=headers) as response:
            return response.status


def test_a_pod_of_the_attempt_at_work_is_believed_and_reviewed_once():
    scene = Scene()
    assert scene.push((token(), BODY), (token(), BODY), (token(), BODY)) == [200, 200, 200]
    assert scene.reviews.asked == 1
    assert scene.accepted[0] == (("ns", "job"), {**BODY, "pod": "job-0-1-0-abcde", "attempt": 1})
    assert scene.results == ["accepted"] * 3


@pytest.mark.parametrize(
    ("bearer", "body", "code", "result"),
    [
        pytest.param(None, BODY, 401, "unauthenticated", id="no token"),
        pytest.param("tök\xfe", BODY, 401, "unauthenticated", id="a token of other letters"),
        pytest.param(token(aud=audience("ns", "other")), BODY, 401, "unauthenticated", id="a token for another job"),
        pytest.param(token(aud="https://kubernetes"), BODY, 401, "unauthenticated", id="a token for the API server"),
        pytest.param(token(pod=""), BODY, 401, "unauthenticated", id="a token bound to no pod"),
        pytest.param(token(pod="gone"), BODY, 403, "foreign", id="a pod that is not ours"),
        pytest.param(token(pod="job-0-1-0-former"), BODY, 403, "foreign", id="a pod of a deleted job of this name"),
        pytest.param(token(uid="former"), BODY, 403, "foreign", id="a pod of the same name, deleted since"),
        pytest.param(token(pod="x-0-1-0-abcde"), BODY, 403, "foreign", id="a pod of another job"),
        pytest.param(token(pod="copy-of-job-0-1-0-abcde"), BODY, 403, "foreign", id="a copy with all its labels"),
        pytest.param(token(namespace="other"), BODY, 403, "foreign", id="a pod of another namespace"),
        pytest.param(token(pod="job-0-0-0-fghij"), BODY, 409, "stale", id="a pod of an earlier attempt"),
        pytest.param(token(), b"not json", 400, "malformed", id="not JSON"),
        pytest.param(token(), b"[" * 1000, 400, "malformed", id="nested without end"),
        pytest.param(token(), {"metrics": []}, 400, "malformed", id="no trainerStatus"),
        pytest.param(token(), [1], 400, "malformed", id="not an object"),
        pytest.param(token(), b"x" * 2000, 413, "oversized", id="too large"),
    ],
)
def test_a_push_that_is_not_from_a_pod_of_the_current_attempt_is_refused(bearer, body, code, result):
    scene = Scene()
    assert scene.push((bearer, body)) == [code]
    assert scene.results == [result]
    assert scene.accepted == []


def test_a_token_is_reviewed_again_after_it_expired():
    scene = Scene(clock=NOW)
    expired = token(lifetime=-1)
    scene.push((expired, BODY), (expired, BODY))
    assert scene.reviews.asked == 2


def test_a_pod_that_pushes_too_often_is_told_to_wait():
    scene = Scene(rate=1.0)
    codes = scene.push(*[(token(), BODY)] * 5)
    assert codes == [200, 200, 429, 429, 429]
    assert scene.results.count("limited") == 3


def test_a_space_before_the_token_makes_it_no_other_token():
    scene = Scene(rate=1.0)
    assert scene.push(*[(" " * spaces + token(), BODY) for spaces in range(4)]) == [200, 200, 429, 429]
    assert scene.reviews.asked == 1


def test_whoever_forges_one_token_after_another_does_not_keep_the_api_server_busy():
    scene = Scene(rate=1.0)
    forged = [(token(uid=str(number), aud="https://kubernetes"), BODY) for number in range(6)]
    assert scene.push(*forged) == [401, 401, 429, 429, 429, 429]
    assert scene.reviews.asked == 2


def test_a_push_is_of_the_attempt_at_work_or_of_the_next_one_once_that_has_ended():
    assert Scene(ended=True).push((token(), BODY), (token(pod="job-0-2-0-next"), BODY)) == [409, 200]
    assert Scene().push((token(), BODY), (token(pod="job-0-2-0-next"), BODY)) == [200, 409]


def test_a_body_that_is_late_or_not_as_its_header_says_is_refused(monkeypatch):
    monkeypatch.setattr(progress, "BODY_SECONDS", 0.2)
    head = f"POST {PUSHES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
    scene = Scene()
    assert scene.send(f"{head}Content-Length: 50\r\n\r\n{{".encode()).startswith(b"HTTP/1.1 408 ")
    broken = f"{head}Content-Length: 5\r\nContent-Encoding: gzip\r\n\r\nxxxxx".encode()
    assert scene.send(broken).startswith(b"HTTP/1.1 400 ")
    assert scene.results == ["slow", "malformed"]
