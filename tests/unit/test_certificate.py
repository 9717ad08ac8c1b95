"""The endpoint's certificate: it verifies by the authority, is kept while good, and renewed before it ends."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from trainwright_operator.cluster.certificate import AUTHORITY_LIFETIME, Certificates, renewed

HOSTS = ["localhost", "progress.ns.svc"]
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def certificates():
    return renewed(None, HOSTS, NOW)


def test_good_certificates_are_kept(certificates):
    assert renewed(certificates, HOSTS, NOW + timedelta(days=59)) is certificates


@pytest.mark.parametrize(
    ("hosts", "later", "same_authority"),
    [
        pytest.param(HOSTS, timedelta(days=61), True, id="the server's nears its end"),
        pytest.param([*HOSTS, "other.ns.svc"], timedelta(), True, id="another host name"),
        pytest.param(HOSTS, AUTHORITY_LIFETIME - timedelta(days=80), False, id="the authority nears its end"),
    ],
)
def test_what_is_renewed(certificates, hosts, later, same_authority):
    fresh = renewed(certificates, hosts, NOW + later)
    assert fresh.server != certificates.server
    assert (fresh.authority == certificates.authority) is same_authority


def test_the_secret_round_trips_and_an_incomplete_one_is_none(certificates):
    data = certificates.to_secret_data()
    assert Certificates.from_secret_data(data) == certificates
    assert Certificates.from_secret_data({**data, "tls.key": data["ca.key"]}) != certificates
    data.pop("tls.key")
    assert Certificates.from_secret_data(data) is None


def test_a_client_that_trusts_the_authority_connects(certificates, tmp_path):
    (tmp_path / "tls.pem").write_bytes(certificates.server + certificates.server_key)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(tmp_path / "tls.pem")
    client_tls = ssl.create_default_context(cadata=certificates.authority.decode())

    async def greet(reader, writer):
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    async def scene():
        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_tls)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls, server_hostname="localhost")
        said = await reader.read()
        writer.close()
        server.close()
        return said

    assert asyncio.run(scene()) == b"hello"
