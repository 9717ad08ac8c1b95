"""The probes over HTTP, as a kubelet asks them, of a controller whose parts stand still on cue."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from builders import make_job
from fake.api_server import FakeApiServer
from integration.operators import free_port
from trainwright_operator.cluster import controller, health, serving
from trainwright_operator.cluster.client import Api
from trainwright_operator.cluster.controller import Controller
from trainwright_operator.cluster.health import Pulse
from trainwright_operator.cluster.informer import Stores
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.resources import TRAINING_JOBS
from trainwright_operator.cluster.settings import Settings

SHORT = 0.2
PATH = "/apis/trainwright.dev/v1alpha1/namespaces/default/trainingjobs/train"


class Reconciler:
    """Ends a reconcile when a test lets it."""

    def __init__(self):
        self.may = asyncio.Event()
        self.may.set()
        self.done = 0

    async def reconcile(self, key):
        await self.may.wait()
        self.done += 1


class Scene:
    def __init__(self, server, working, reconciler, port):
        self.server, self.controller, self.reconciler, self._port = server, working, reconciler, port

    async def probe(self, path="/healthz", patience=5.0):
        """The code and the words; None where no answer comes in time."""
        url, limit = f"http://127.0.0.1:{self._port}{path}", aiohttp.ClientTimeout(total=patience)
        with suppress(TimeoutError):
            async with aiohttp.ClientSession(timeout=limit) as session, session.get(url) as answer:
                return answer.status, (await answer.text()).strip()

    def told(self):
        """What a watch brings when the job has changed."""
        obj = self.server.put(PATH, make_job("train").manifest())
        self.controller.on_event(TRAINING_JOBS, "MODIFIED", obj)
        return obj


@asynccontextmanager
async def scene(monkeypatch):
    """A leader that lists every moment, with limits of a moment; it has one job, which its watch has told of."""
    for module, name in ((health, "BLIND_SECONDS"), (controller, "BLIND_SECONDS"), (controller, "STUCK_SECONDS")):
        monkeypatch.setattr(module, name, SHORT)
    server, beating, reconciler = FakeApiServer(), Pulse(leads=True, primed=True), Reconciler()
    async with server.serve() as connection, Api(connection) as api:
        settings = Settings(("default",), relist_interval=SHORT / 2, http_port=free_port(), workers=2)
        working = Controller(api, Stores(), reconciler, settings, Metrics())
        beating.still.append(working.still)
        found = Scene(server, working, reconciler, settings.http_port)
        found.told()
        await working.prime()
        app = health.application(Metrics(), beating, lambda: None)
        async with serving.serving(app, settings.http_port):
            running = asyncio.create_task(working.run())
            try:
                yield found
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError, BaseExceptionGroup):
                    await running


def test_an_idle_operator_is_alive_and_one_whose_watch_is_dead_is_not(monkeypatch):
    async def play():
        async with scene(monkeypatch) as found:
            await asyncio.sleep(5 * SHORT)  # several lists and not one event
            assert await found.probe() == (200, "ok: the loop, the workers and the watches turn")
            found.server.put(PATH, make_job("train").suspended().manifest())
            async with asyncio.timeout(20):
                while (answer := await found.probe())[0] == 200:
                    await asyncio.sleep(0.05)
            words = "not ok: the watch of trainingjobs in namespace default misses changes that a list has found"
            assert answer == (503, words)
            assert (await found.probe("/readyz"))[0] == 200
            found.told()
            assert (await found.probe())[0] == 200, "it sees again"

    asyncio.run(play())


def test_workers_that_end_nothing_while_much_is_due_are_not_alive(monkeypatch):
    async def play():
        async with scene(monkeypatch) as found:
            found.reconciler.may.clear()
            for name in ("a", "b", "c", "d"):
                found.controller._queue.add(("default", name))
            async with asyncio.timeout(20):
                while (answer := await found.probe())[0] == 200:
                    await asyncio.sleep(0.05)
            assert answer[0] == 503
            assert answer[1].startswith("not ok: no worker has finished a reconcile for ")
            found.reconciler.may.set()
            async with asyncio.timeout(20):
                while (await found.probe())[0] != 200:
                    await asyncio.sleep(0.05)

    asyncio.run(play())


def test_a_blocked_loop_answers_no_probe(monkeypatch):
    async def play():
        async with scene(monkeypatch) as found:
            asyncio.get_running_loop().call_later(0.1, time.sleep, 1.5)
            probe = asyncio.to_thread(lambda: asyncio.run(patient(found)))
            assert await probe is None
            assert (await found.probe())[0] == 200

    async def patient(found):
        await asyncio.sleep(0.3)
        return await found.probe(patience=0.5)

    asyncio.run(play())


@pytest.mark.parametrize(("leads", "code"), [(False, 503), (True, 200)])
def test_a_replica_is_ready_that_has_read_what_there_is(leads, code, monkeypatch):
    async def play():
        app = health.application(Metrics(), Pulse(leads=leads, primed=leads), lambda: None)
        async with serving.serving(app, port := free_port()):
            assert (await Scene(None, None, None, port).probe("/readyz"))[0] == code

    asyncio.run(play())
