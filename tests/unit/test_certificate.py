"""The endpoint's certificate: it verifies by the authority, is kept while good, and renewed before it ends."""

import asyncio
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from trainwright_operator.cluster.certificate import AUTHORITY_LIFETIME, Certificates, flaw, renewed

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
def test_a_certificate_is_renewed_before_its_end_and_for_another_host(certificates, hosts, later, same_authority):
    fresh = renewed(certificates, hosts, NOW + later)
    assert fresh.server != certificates.server
    assert (fresh.authority == certificates.authority) is same_authority


def test_the_secret_round_trips_and_an_empty_one_is_none(certificates):
    data = certificates.to_secret_data()
    assert Certificates.from_secret_data(data) == certificates
    assert flaw(certificates) == ""
    assert Certificates.from_secret_data({}) is None
    assert Certificates.from_secret_data({"ca.crt": ""}) is None


OTHER = renewed(None, ["other"], NOW).to_secret_data()


@pytest.mark.parametrize(
    ("junk", "said", "same_authority"),
    [
        pytest.param({"tls.key": None}, "tls.key is no PEM", True, id="incomplete"),
        pytest.param({"tls.crt": "%%%"}, "tls.crt is no PEM", True, id="bad base64"),
        pytest.param({"tls.crt": "aGVsbG8="}, "tls.crt is no PEM", True, id="not PEM"),
        pytest.param({"ca.crt": "aGVsbG8="}, "ca.crt is no PEM", False, id="an authority that is not PEM"),
        pytest.param({"ca.key": "é"}, "ca.key is no PEM", False, id="not even ASCII"),
        pytest.param({"tls.key": OTHER["tls.key"]}, "tls.key is not the key of tls.crt", True, id="another key"),
        pytest.param({"ca.key": OTHER["ca.key"]}, "ca.key is not the key of ca.crt", False, id="another's key"),
        pytest.param(
            {name: OTHER[name] for name in ("tls.crt", "tls.key")}, "tls.crt is not issued by ca.crt", True, id="a pair"
        ),
        pytest.param(
            {name: OTHER[name] for name in ("ca.crt", "ca.key")}, "tls.crt is not issued by ca.crt", True, id="moved"
        ),
    ],
)
def test_junk_is_replaced_and_a_sound_authority_kept(certificates, junk, said, same_authority):
    data = {name: text for name, text in (certificates.to_secret_data() | junk).items() if text is not None}
    current = Certificates.from_secret_data(data)
    assert flaw(current).startswith(said)
    fresh = renewed(current, HOSTS, NOW)
    assert flaw(fresh) == ""
    assert fresh.server != current.server
    assert (fresh.authority == current.authority) is same_authority


def test_an_authority_with_an_rsa_key_goes_on_signing(certificates):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of one's own")])
    own = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + AUTHORITY_LIFETIME).sign(key, SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = renewed(replace(certificates, authority=own.public_bytes(Encoding.PEM), authority_key=pem), HOSTS, NOW)
    assert fresh.authority_key == pem
    assert flaw(fresh) == ""


def test_a_certificate_for_no_host_is_replaced(certificates):
    nameless = replace(certificates, server=certificates.authority, server_key=certificates.authority_key)
    assert renewed(nameless, HOSTS, NOW).server != nameless.server


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
