"""The process of the operator: that its lease is kept from the moment it is held."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager, suppress

from fake.api_server import FakeApiServer
from integration.operators import free_port
from trainwright_operator.cluster import process
from trainwright_operator.cluster.settings import Settings

PODS = "/api/v1/pods"


def settings():
    return Settings(
        http_port=free_port(),
        progress_port=0,
        pod_name="operator-0",
        lease_duration=1.5,
        lease_renew_deadline=1.0,
        lease_period=0.1,
    )


def kubeconfig(path, server):
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    cluster, user = {"name": "c", "cluster": {"server": server}}, {"name": "u", "user": {"token": "x"}}
    path.write_text(json.dumps({"current-context": "c", "contexts": [context], "clusters": [cluster], "users": [user]}))
    return str(path)


class SlowLists(FakeApiServer):
    """An API server that lists the pods when a test lets it; ``listing`` tells that it was asked."""

    def __init__(self):
        super().__init__()
        self.listing, self.may = asyncio.Event(), asyncio.Event()

    async def _handle(self, request):
        if request.path == PODS:
            self.listing.set()
            await self.may.wait()
        return await super()._handle(request)


@asynccontextmanager
async def listing(tmp_path, monkeypatch):
    """The operator's task while it waits for its first list, and the server; cancelled in the end."""
    server = SlowLists()
    async with server.serve() as connection:
        monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", connection.server))
        operator = asyncio.create_task(process.run(settings()))
        try:
            await asyncio.wait_for(server.listing.wait(), 20)
            yield operator, server
        finally:
            await ended(operator)
            server.may.set()


async def ended(operator):
    operator.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait_for(operator, 10)


def test_a_lease_is_kept_while_everything_is_listed_for_the_first_time(tmp_path, monkeypatch, caplog):
    async def scene():
        async with listing(tmp_path, monkeypatch) as (operator, server):
            await asyncio.sleep(2.5)  # longer than a lease may stand still
            assert not operator.done()
            assert server.requests["PUT", "leases"] >= 5

    caplog.set_level(logging.INFO)
    asyncio.run(scene())
    assert "leadership was lost" not in caplog.messages


def test_a_lease_is_released_by_who_is_stopped_before_the_work_began(tmp_path, monkeypatch):
    async def scene():
        async with listing(tmp_path, monkeypatch) as (operator, server):
            await ended(operator)
            (lease,) = [obj for path, obj in server.objects.items() if "/leases/" in path]
            assert lease["spec"]["holderIdentity"] == ""

    asyncio.run(scene())
